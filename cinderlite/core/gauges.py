# SPDX-License-Identifier: Apache-2.0
"""What /metrics says beside counters: work and how old it is, volumes, room in the pools, records to be written.

Read by the reconciler, not when somebody asks: so a look at /metrics costs nothing and never waits for the database or
for Ceph. What a newcomer gets wrong: the database is one for all processes, so each of them says the same of it. Take
the largest, not the sum; what only one process knows (its jobs) is to be summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, case, func, null, select

from cinderlite import metrics
from cinderlite.context import World
from cinderlite.core import pools, records, services
from cinderlite.core.states import Machine
from cinderlite.db import clock, models
from cinderlite.db.indexes import marked, unindexed

RUNNING, WAITING = "running", "waiting"


class Gauges:
    """Sets them; it knows which values there were, so that what is gone is 0."""

    def __init__(self, world: World, machines: Sequence[Machine]) -> None:
        self._world = world
        self._machines = machines
        self._statuses: set[str] = set()

    def ask(self) -> None:
        """Which back ends answer: before a pass, which comes to no end if one does not."""
        for name, backend in self._world.backends.items():
            metrics.CEPH_ANSWERS.labels(name).set(services.answers(backend))

    def note(self) -> None:
        """What changes all the time, at the end of a pass. Raises Unavailable."""
        for machine in self._machines:
            self._work(machine)
        self._records()
        for name, jobs in (("jobs", self._world.jobs), ("flattening", self._world.flattening)):
            metrics.JOB_THREADS.labels(name).set(jobs.threads)
            metrics.JOBS_RUNNING.labels(name).set(jobs.running)
        for name in self._world.backends:
            self._room(name)
        metrics.PASSED.set_to_current_time()

    def count(self) -> None:
        """What takes longer to count, now and then. Raises Unavailable."""
        table = models.Volume
        query = select(table.status, func.count(), func.sum(table.size)).where(table.deleted.is_(False))
        with self._world.db.read() as session:
            found = {status: (count, size) for status, count, size in session.execute(query.group_by(table.status))}
        self._statuses |= found.keys()
        for status in self._statuses:
            count, size = found.get(status, (0, 0))
            metrics.VOLUMES.labels(status).set(count)
            metrics.VOLUME_BYTES.labels(status).set(int(size) * pools.GIB)

    def _work(self, machine: Machine) -> None:
        table: Any = machine.model
        held = case((and_(table.lease_owner.is_not(None), table.lease_until >= clock.now()), RUNNING), else_=WAITING)
        dated = hasattr(table, "created_at")
        since = func.min(func.coalesce(table.updated_at, table.created_at)) if dated else null()
        verb_of = table.intent["verb"].as_string().label("verb")
        query = select(verb_of, held.label("state"), func.count(), since).where(table.busy == 1)
        with self._world.db.read() as session:
            rows = session.execute(query.group_by("verb", "state"))
            found = {(verb, state): (count, oldest) for verb, state, count, oldest in rows}
        now = models.utcnow()
        for verb in machine.moves:
            for state in (RUNNING, WAITING):
                count, oldest = found.get((verb, state), (0, None))
                labels = table.__tablename__, verb, state
                metrics.WORK.labels(*labels).set(count)
                if dated:
                    metrics.WORK_AGE.labels(*labels).set((now - oldest).total_seconds() if oldest else 0)

    def _records(self) -> None:
        with self._world.db.read() as session:
            for table in (kind.model for kind in records.KINDS):
                # What is under way is only about to be something else: its record waits for that.
                waiting = select(func.count()).where(marked(table.unwritten), unindexed(table.busy) == 0)
                metrics.RECORDS_WAITING.labels(table.__tablename__).set(session.scalar(waiting) or 0)

    def _room(self, name: str) -> None:
        room = self._world.room.get(name)
        if room is None or room.total is None or room.free is None:
            return
        for gauge, gib in (
            (metrics.POOL_TOTAL, room.total),
            (metrics.POOL_FREE, room.free),
            (metrics.POOL_PROVISIONED, room.provisioned),
        ):
            gauge.labels(name).set(gib * pools.GIB)
