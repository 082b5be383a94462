# SPDX-License-Identifier: Apache-2.0
"""The engine and the two kinds of transaction: `read` and `write`.

Transactions are short and never span a call to Ceph or QEMU. Rows stay usable after their transaction ends (nothing
expires); a relationship that was not loaded raises instead of asking the database behind one's back.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import sqlalchemy
from sqlalchemy import event, exc
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from cinderlite import errors


class Database:
    """Connections to one database. `url` is SQLAlchemy's; `timeout` in seconds for locks and connections."""

    def __init__(self, url: str, timeout: float, threads: int = 16) -> None:
        parsed = sqlalchemy.engine.make_url(url)
        options: dict[str, Any] = {
            "pool_pre_ping": True,
            "pool_timeout": timeout,
            "pool_size": threads,
            "max_overflow": 4,
        }
        self.sqlite = parsed.get_backend_name() == "sqlite"
        if self.sqlite:
            options |= {"connect_args": {"timeout": timeout, "check_same_thread": False}, "pool_pre_ping": False}
        elif parsed.get_backend_name() == "postgresql":
            options |= {"connect_args": {"connect_timeout": int(timeout)}, "isolation_level": "READ COMMITTED"}
        else:
            options |= {
                "connect_args": {"connect_timeout": int(timeout), "read_timeout": int(timeout) * 3},
                "isolation_level": "READ COMMITTED",
            }
        self.engine: Engine = sqlalchemy.create_engine(parsed, **options)
        if self.sqlite:
            event.listen(self.engine, "connect", _sqlite_connected)
            event.listen(self.engine, "begin", _sqlite_begin)
        self._writer = self.engine.execution_options(cinderlite_write=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session to read with; what it sees is consistent on SQLite, read-committed elsewhere."""
        with _translated(), Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed at the end of the block, all or none.

        On SQLite the write lock is taken at the start, so that what the block reads cannot change under it.
        """
        with _translated(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def ping(self) -> None:
        """Ask the database anything. Raises DatabaseUnavailable."""
        with self.read() as session:
            session.execute(sqlalchemy.text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.OperationalError, exc.TimeoutError, exc.InterfaceError) as error:
        raise errors.DatabaseUnavailable from error


def _sqlite_connected(connection: sqlite3.Connection, _record: object) -> None:
    # SQLAlchemy begins the transactions itself (below): pysqlite's own guess would begin them too late.
    connection.isolation_level = None
    pragmas = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "case_sensitive_like = ON")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sqlalchemy.Connection) -> None:
    write = connection.get_execution_options().get("cinderlite_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
