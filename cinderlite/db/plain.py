# SPDX-License-Identifier: Apache-2.0
"""Rows as objects of their models without a session: for what is only read, and with every request.

The ORM's own loading of one row costs three times what its statement does: with each statement it makes a processor
for every column, and keeps account of what it loaded. See doc/decisions/0028-volumes-read-without-the-orm.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import sqlalchemy
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import manager_of_class

from cinderlite.db.models.base import Base

M = TypeVar("M", bound=Base)


class Plain(Generic[M]):
    """Makes objects of a model from rows that begin with, or contain, its `columns` in their order.

    The objects are as of a session that was closed: what was not given cannot be loaded any more, and raises.
    """

    def __init__(self, model: type[M]) -> None:
        mapper = sqlalchemy.inspect(model)
        self.table = mapper.local_table
        self.columns: list[Any] = list(self.table.columns)
        self._keys = [mapper.get_property_by_column(column).key for column in self.columns]
        self._manager = manager_of_class(model)

    def make(self, values: Sequence[Any], **related: Any) -> M:
        """The object with these values of its columns, and these related ones."""
        made: M = self._manager.new_instance()
        made.__dict__.update(zip(self._keys, values, strict=True), **related)
        make_transient_to_detached(made)
        return made
