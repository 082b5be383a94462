# SPDX-License-Identifier: Apache-2.0
"""SQLite's connections, and the threads that write to one database: one at a time, but they wait together.

SQLite's own way (`synchronous = FULL`) is to write each commit to the disk before anybody else may begin. Its log is
one file in the order of the commits, so what is on the disk after a flush of it is all that was committed before:
whoever comes while one is under way shares the next. See doc/decisions/0032-writers-wait-for-the-disk-together.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import sqlite3
import threading
from collections.abc import Iterator

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import Engine

from cinderlite import errors

LOG = logging.getLogger(__name__)


class Writers:
    """Those of this process; `timeout` in seconds for each other."""

    def __init__(self, engine: Engine, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout
        # Who finds SQLite's own lock taken sleeps, longer each time: here they queue instead.
        self._turn, self._flushing, self._counting = threading.Lock(), threading.Lock(), threading.Lock()
        self._asked = self._flushed = 0
        #: Path of the log; None if there is none, and SQLite waits for the disk itself.
        self._log: pathlib.Path | None = None
        self._opened: int | None = None
        #: Whether a flush has failed, so that the disk may lack what a later one would be told is there.
        self._torn = False
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "begin", _begin)

    def _connected(self, connection: sqlite3.Connection, _record: object) -> None:
        # SQLAlchemy begins the transactions itself (below): pysqlite's own guess would begin them too late.
        connection.isolation_level = None
        [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        # As SQLite calls it, which follows links. A database in memory has no log, nor where memory cannot be shared.
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        self._log = pathlib.Path(f"{file}-wal") if mode == "wal" else None
        waits = "FULL" if self._log is None else "NORMAL"
        for pragma in (f"synchronous = {waits}", "foreign_keys = ON", "case_sensitive_like = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one that writes. Raises DatabaseUnavailable."""
        with self._held(self._turn):
            yield

    def flush(self) -> None:
        """Return when what this thread has committed is on the disk. Raises DatabaseUnavailable."""
        if self._log is None:
            return
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._held(self._flushing):
            if self._flushed >= mine:
                return
            covered = self._asked
            if self._torn:
                self._write_back()
            self._sync(self._log)
            self._flushed = covered

    def close(self) -> None:
        """Let go of the log. SQLite locks other files than this one, so that it loses no lock by that."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    def _sync(self, log: pathlib.Path) -> None:
        try:
            if self._opened is None or os.fstat(self._opened).st_ino != log.stat().st_ino:
                self.close()
                # Kept open: Linux tells of what it could not write once, and only who has the file open then.
                self._opened = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            os.fdatasync(self._opened)
        except OSError as error:
            LOG.exception("%s cannot be written to the disk", log)
            self._torn = True
            raise errors.DatabaseUnavailable from error

    def _write_back(self) -> None:
        """Have the database itself hold what is in the log: Linux says only once that it could not write something."""
        with self._engine.connect() as connection:
            busy, *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        if busy:
            raise errors.DatabaseUnavailable
        self._torn = False

    @contextlib.contextmanager
    def _held(self, lock: threading.Lock) -> Iterator[None]:
        if not lock.acquire(timeout=self._timeout):
            raise errors.DatabaseUnavailable
        try:
            yield
        finally:
            lock.release()


def _begin(connection: sqlalchemy.Connection) -> None:
    # Who only reads needs none: each statement sees one moment, as with the other databases, and is done sooner.
    if connection.get_execution_options().get("cinderlite_write", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
