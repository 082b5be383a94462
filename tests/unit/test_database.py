# SPDX-License-Identifier: Apache-2.0
"""What the databases do differently and the service does not show; on the one that --database names."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import sqlite3
import threading

import pytest
from sqlalchemy import select, text, update

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import quotas, volumes
from cinderlite.db import models
from cinderlite.db.session import Database


def test_the_right_side_of_an_update_is_the_row_as_it_was(ctx: Context, world: World) -> None:
    volume = volumes.create(ctx, size=1)
    table = models.Volume
    with world.db.write() as session:
        session.execute(update(table).values(status="elsewhere", previous_status=table.status, size=table.size + 1))
    with world.db.read() as session:
        row = session.get_one(table, volume.id)
    assert (row.status, row.previous_status, row.size) == ("elsewhere", "available", 2)


@pytest.mark.parametrize("name", ["\ud800", "x\udfff"])
def test_what_cannot_be_stored_is_the_callers_error(world: World, name: str) -> None:
    with pytest.raises(errors.InvalidInput), world.db.read() as session:
        session.scalars(select(models.Volume).where(models.Volume.name == name)).all()


def test_many_new_projects_lock_themselves_at_once(world: World) -> None:
    """Transactions that make the same row at the same time wait for each other, and none is a deadlock's victim."""
    inside, most = 0, 0
    guard, gate = threading.Lock(), threading.Barrier(8)

    def lock(project: str) -> None:
        nonlocal inside, most
        gate.wait(10)
        with world.db.write() as session:
            quotas.lock(session, project)
            with guard:
                inside += 1
                most = max(most, inside)
            session.execute(select(models.Volume.id)).all()
            with guard:
                inside -= 1

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for project in map(str, range(20)):
            for future in [pool.submit(lock, project) for _ in range(8)]:
                future.result()
    assert most == 1


def test_only_what_can_be_repeated_is_not_waited_for(world: World) -> None:
    """For SQLite functional/test_power_cut shows it."""
    if world.db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite is asked for its file, and MariaDB has no such choice")
    found = []
    own = Database(world.db.engine.url.render_as_string(hide_password=False), 10)
    with contextlib.closing(own), own.engine.connect() as connection:
        # As it is by default; the tests' own server waits for nothing.
        connection.execute(text("ALTER ROLE CURRENT_USER SET synchronous_commit TO on"))
        connection.commit()
        for repeatable in (False, True, False):
            with own.write(repeatable=repeatable) as session:
                found.append(session.scalar(text("SHOW synchronous_commit")))
        connection.execute(text("ALTER ROLE CURRENT_USER RESET synchronous_commit"))
        connection.commit()
    assert found == ["on", "off", "on"]


def test_who_writes_elsewhere_is_waited_for_and_not_for_ever(world: World, tmp_path: pathlib.Path) -> None:
    if not world.db.sqlite:
        pytest.skip("the others have locks of their own")
    file = tmp_path / "shared.sqlite"
    ours = Database(f"sqlite:///{file}", 1.0)
    theirs = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    with contextlib.closing(ours), contextlib.closing(theirs):
        with ours.write() as session:
            session.execute(text("CREATE TABLE told (word TEXT)"))
        theirs.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.DatabaseUnavailable), ours.write() as session:
            session.execute(text("INSERT INTO told VALUES ('too early')"))
        freed = threading.Timer(0.1, theirs.execute, ("ROLLBACK",))
        freed.start()
        with ours.write() as session:
            session.execute(text("INSERT INTO told VALUES ('ours')"))
        freed.join()
        assert theirs.execute("SELECT word FROM told").fetchall() == [("ours",)]
