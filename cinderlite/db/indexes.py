# SPDX-License-Identifier: Apache-2.0
"""Which index a query takes, where a database that keeps no statistics would take one that leaves nearly all rows.

SQLite counts nothing of its own accord: it takes any `column = value` to leave ten rows, be it "not deleted" or "in
this pool", and any comparison to leave a quarter of them, be it the mark that one row in a million has.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func


def unindexed(column: Any) -> ColumnElement[Any]:
    """The column in a condition that no index is to be looked up by: what stands beside it leaves fewer rows."""
    return func.coalesce(column, column, type_=column.type)


def marked(column: Any) -> ColumnElement[bool]:
    """That a column has a value, which is a number from 0 on or a text: as a comparison, which an index serves.

    `IS NOT NULL` is none for SQLite as distributions build it (without SQLITE_ENABLE_STAT4).
    """
    least: ColumnElement[bool] = column >= ("" if column.type.python_type is str else 0)
    return least
