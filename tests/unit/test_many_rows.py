# SPDX-License-Identifier: Apache-2.0
"""What the service looks for all the time costs the same however many rows there are that it does not look for."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event

from cinderlite.context import Context, World
from cinderlite.core import gauges, reconcile, recorder, snapshots, volumes
from cinderlite.db import models
from cinderlite.db.session import Database

#: Instructions of SQLite's machine that are counted as one.
GRAIN = 20

LOOKS: dict[str, Callable[[World], object]] = {
    "records": lambda world: recorder.Recorder(world).once(),
    "a pass": reconcile.once,
    "messages": reconcile.forget,
    "the next try": lambda world: reconcile.due_in(world, 60.0, 0.0),
    "gauges": lambda world: gauges.Gauges(world, reconcile.MACHINES).note(),
}


def instructions(database: Database, work: Callable[[], object]) -> int:
    """How many instructions SQLite carries out for some work."""
    count = 0

    def one_more() -> None:
        nonlocal count
        count += GRAIN

    def taken(connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_progress_handler(one_more, GRAIN)

    def given_back(connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_progress_handler(None, 0)

    event.listen(database.engine, "checkout", taken)
    event.listen(database.engine, "checkin", given_back)
    try:
        work()
    finally:
        event.remove(database.engine, "checkout", taken)
        event.remove(database.engine, "checkin", given_back)
    return count


def multiply(world: World, table: Any, row_id: str, times: int, **changed: Any) -> None:
    """Have a row many times over, of which no record is to be written."""
    table = table.__table__
    with world.db.write() as session:
        row = dict(session.execute(sqlalchemy.select(table).where(table.c.id == row_id)).mappings().one())
        copies = [{**row, "id": models.new_id(), "unwritten": None, **changed} for _ in range(times)]
        session.execute(sqlalchemy.insert(table), copies)


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_as_quick_among_many_rows(ctx: Context, world: World, database: Database, name: str) -> None:
    if not database.sqlite:
        pytest.skip("only SQLite has no statistics to choose its indexes by")

    def look() -> object:
        return LOOKS[name](world)

    volume = volumes.create(ctx, size=1)
    snapshot = snapshots.create(ctx, volume)
    recorder.Recorder(world).once()
    look()
    before = instructions(database, look)
    multiply(world, models.Volume, volume.id, 2000)
    multiply(world, models.Volume, volume.id, 2000, status="deleted", deleted=True)
    multiply(world, models.Snapshot, snapshot.id, 2000)
    assert instructions(database, look) < before + 1000
