# SPDX-License-Identifier: Apache-2.0
"""Requests of a project in a database with more and more volumes of others."""

from __future__ import annotations

import contextlib
import datetime
import functools
import sqlite3
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy

from backends.service import Service
from charts import Chart
from cinderlite.db import models
from cinderlite.db.session import Database
from growth.place import Fact, Part, Place, made
from measuring import Client, expect

#: How many rows go into the database in one transaction.
BATCH = 50_000
#: Rows of each of the other projects.
THEIRS = 1000


def rows(place: Place) -> Part:
    """Volumes in the database, most of them of other projects."""
    lines: dict[str, list[float]] = {}
    with place.service("api") as service:
        client = Client(service)
        made(client, name="real")

        def note(name: str, work: Callable[[], Any]) -> None:
            lines.setdefault(name, []).append(place.median(work))

        def listed(query: str, count: int) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = client.call("GET", f"/v3/volumes/detail?{query}")["volumes"]
            expect(len(found) == count, f"{count} volumes for {query}, not {len(found)}")
            return found

        def create(fresh: list[str]) -> None:
            fresh.append(client.call("POST", "/v3/volumes", {"volume": {"size": 1}})["volume"]["id"])

        filled = 1
        for total in place.sizes.rows:
            own = min(total, place.sizes.own)
            fill(service, filled, total, own)
            filled = total
            client = Client(service)  # Nobody keeps an idle connection for as long as that takes.
            last, fresh = listed("limit=50", 50)[-1]["id"], list[str]()
            note("first page of 50", lambda: listed("limit=50", 50))
            note("second page of 50", functools.partial(listed, f"limit=50&marker={last}", 50))
            note("by name", lambda: listed("name=row%2050", 1))
            note("by status, 50", functools.partial(listed, "status=in-use&limit=50", min(50, (own - 1) // 20)))
            note("show", functools.partial(client.call, "GET", f"/v3/volumes/{last}"))
            note("create", functools.partial(create, fresh))
            for volume in fresh:
                client.call("DELETE", f"/v3/volumes/{volume}")
    steps = list(place.sizes.rows)
    chart = Chart("rows", "Requests of one project", "volumes of all projects", "ms", steps, lines)
    usual = steps.index(place.sizes.own) if place.sizes.own in steps else 0
    facts = [
        Fact(f"{name}: {steps[-1]:,} rows / {steps[usual]:,}", round(values[-1] / values[usual], 2),
             at_most=1.5 if name == "first page of 50" else None)
        for name, values in lines.items()
    ]  # fmt: skip
    return Part([chart], facts)


def fill(service: Service, there: int, total: int, own: int) -> None:
    """Volumes up to `total`, straight into the database; the first `own` are the project's, every 20th is in use.

    They look like volumes of the service's own pool, but nothing marks them as to be recorded in Ceph.
    """
    path = service.directory / "cinderlite.sqlite"
    database = Database(f"sqlite:///{path}", 60)
    start = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 -- naive UTC, as the database keeps it
    with database.read() as session:
        kind, host = session.execute(sqlalchemy.select(models.Volume.volume_type_id, models.Volume.host).limit(1)).one()
    for begin in range(there, total, BATCH):
        batch = [
            {
                "id": str(uuid.uuid4()), "project_id": "demo" if number < own else f"{number // THEIRS:032x}",
                "user_id": "alice", "name": f"row {number}", "size": 1,
                "status": "available" if number % 20 else "in-use", "availability_zone": "nova", "host": host,
                "volume_type_id": kind, "bootable": False, "multiattach": False, "consumes_quota": True,
                "deleted": False, "busy": 0, "lease_until": 0.0, "unwritten": None,
                "created_at": start + datetime.timedelta(seconds=number),
            }
            for number in range(begin, min(begin + BATCH, total))
        ]  # fmt: skip
        with database.write() as session:
            # Else what is None is left to the column's default, which is a mark.
            session.execute(sqlalchemy.insert(models.Volume), batch, execution_options={"render_nulls": True})
    database.close()
    # What is written at once leaves a log of a size that no service leaves, and every read looks through it first.
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
