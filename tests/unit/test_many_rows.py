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
from conftest import PROJECT, Client, settle
from fakes_hypervisor import FakeHypervisor

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


#: Lists of a project's own, by the table that others have many rows in.
LISTS: dict[str, Any] = {
    "volumes": models.Volume, "snapshots": models.Snapshot, "backups": models.Backup, "attachments": models.Attachment,
}  # fmt: skip


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


@pytest.mark.parametrize("query", ["limit=50", "status=error&limit=50", "name=other&limit=50"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_is_as_quick_among_many_rows_of_others(
    client: Client, world: World, database: Database, hypervisor: FakeHypervisor, kind: str, query: str
) -> None:
    if not database.sqlite:
        pytest.skip("only SQLite has no statistics to choose its indexes by")
    if kind == "attachments" and "name" in query:
        pytest.skip("they have none")
    volume = client.volume()["id"]
    client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    client.post("/v3/backups", {"backup": {"volume_id": volume}})
    server = hypervisor.add_server("vm", PROJECT).id
    client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})
    settle(world)
    recorder.Recorder(world).once()

    def look() -> None:
        assert client.at("3.71").get(f"/v3/{kind}?{query}").status_code == 200

    look()
    before = instructions(database, look)
    with world.db.read() as session:
        row_id = session.scalars(sqlalchemy.select(LISTS[kind].id)).one()
    multiply(world, LISTS[kind], row_id, 2000, project_id="another", status="error")
    assert instructions(database, look) < before + 1000
