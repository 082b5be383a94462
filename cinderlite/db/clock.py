# SPDX-License-Identifier: Apache-2.0
"""The database's clock: the one that all processes share, whatever their own machines take the time to be."""

from __future__ import annotations

from typing import Any

from sqlalchemy import DateTime, Double, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):  # noqa: N801  (written like SQLAlchemy's own functions)
    """Seconds since 1970 when the database received the statement that this is part of."""

    type = Double()
    inherit_cache = True


class utcnow(FunctionElement[Any]):  # noqa: N801
    """The same moment, as the naive UTC that the tables hold."""

    type = DateTime()
    inherit_cache = True


def read(session: Session) -> float:
    """Seconds since 1970 now."""
    return session.scalars(select(now())).one()


_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    # Stable within a statement, unlike clock_timestamp(): so an index serves a comparison with it.
    "postgresql": "CAST(EXTRACT(EPOCH FROM statement_timestamp()) AS DOUBLE PRECISION)",
    # Not UNIX_TIMESTAMP(NOW()): that goes by local time, of which one hour a year comes twice.
    "mysql": "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)",
}
_UTCNOW = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    "postgresql": "timezone('utc', statement_timestamp())",
    "mysql": "UTC_TIMESTAMP(6)",
}


@compiles(now)
def _now(_element: now, compiler: Any, **_words: Any) -> str:
    return _NOW[compiler.dialect.name.replace("mariadb", "mysql")]


@compiles(utcnow)
def _utcnow(_element: utcnow, compiler: Any, **_words: Any) -> str:
    return _UTCNOW[compiler.dialect.name.replace("mariadb", "mysql")]
