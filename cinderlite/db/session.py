# SPDX-License-Identifier: Apache-2.0
"""The engine and the two kinds of transaction: `read` and `write`.

Transactions are short and never span a call to Ceph or QEMU. Rows stay usable after their transaction ends (nothing
expires); a relationship that was not loaded raises instead of asking the database behind one's back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy
from sqlalchemy import event, exc
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.db.sqlite import Writers

#: In an UPDATE every right side is to mean the row as it was (by default what stands on the left is seen on the
#: right), and what does not fit is to be refused, not cut.
_MARIADB = (
    "SET sql_mode = CONCAT_WS(',', @@sql_mode, 'SIMULTANEOUS_ASSIGNMENT', 'STRICT_ALL_TABLES'), "
    "innodb_lock_wait_timeout = {timeout}"
)


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
            waits = {"connect_timeout": int(timeout), "options": f"-c lock_timeout={int(timeout)}s"}
            options |= {"connect_args": waits, "isolation_level": "READ COMMITTED"}
        else:
            options |= {
                "connect_args": {
                    "connect_timeout": int(timeout),
                    "read_timeout": int(timeout) * 3,
                    "init_command": _MARIADB.format(timeout=int(timeout)),
                },
                "isolation_level": "READ COMMITTED",
            }
        self.engine: Engine = sqlalchemy.create_engine(parsed, **options)
        self._writers = Writers(self.engine, timeout) if self.sqlite else None
        if parsed.get_backend_name() == "postgresql":
            event.listen(self.engine, "begin", _postgresql_begin)
        self._writer = self.engine.execution_options(cinderlite_write=True)
        self._settler = self._writer.execution_options(cinderlite_repeatable=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session to read with; each of its statements sees what is committed then."""
        with _translated(), Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextlib.contextmanager
    def look(self) -> Iterator[sqlalchemy.Connection]:
        """A connection to read plain rows with: the same without what a session keeps account of."""
        with _translated(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self, *, repeatable: bool = False) -> Iterator[Session]:
        """A session whose changes are committed at the end of the block, all or none.

        On SQLite the write lock is taken at the start, so that what the block reads cannot change under it. What is
        `repeatable`, done again if it were not there, is not waited for until it is on the disk: should the database's
        host lose its power, the last of those may be missing, and never something that was committed before others.
        """
        engine = self._settler if repeatable else self._writer
        turn = contextlib.nullcontext() if self._writers is None else self._writers.turn()
        with _translated():
            with turn, Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
            if self._writers is not None and not repeatable:
                self._writers.flush()

    def ping(self) -> None:
        """Ask the database anything. Raises DatabaseUnavailable."""
        with self.read() as session:
            session.execute(sqlalchemy.text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if self._writers is not None:
            self._writers.close()


def make_and_lock(session: Session, table: type[Any], **key: Any) -> None:
    """Make the row of that primary key if it is missing, and hold it until the transaction ends.

    One statement: an INSERT that fails leaves MariaDB with a shared lock, and two that then want more are a deadlock.
    """
    if session.get_bind().dialect.name in ("mysql", "mariadb"):
        session.execute(mysql.insert(table).values(**key).on_duplicate_key_update(**key))
        return
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(table).values(**key).on_conflict_do_update(index_elements=list(key), set_=key))


@contextlib.contextmanager
def refusing(error: errors.CinderliteError) -> Iterator[None]:
    """Around a transaction: raise `error` if it would break a unique name or leave a row without what it names."""
    try:
        yield
    except exc.IntegrityError as broken:
        raise error from broken


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.DataError, OverflowError, UnicodeEncodeError) as error:  # SQLite's driver has no class for the latter.
        raise errors.InvalidInput("a value is too long, too large or of letters that cannot be stored") from error
    except (exc.OperationalError, exc.TimeoutError, exc.InterfaceError) as error:
        raise errors.DatabaseUnavailable from error


def _postgresql_begin(connection: sqlalchemy.Connection) -> None:
    if connection.get_execution_options().get("cinderlite_repeatable", False):
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
