# SPDX-License-Identifier: Apache-2.0
"""Finish what has an intent and nobody working on it; make guests and attachment rows agree.

There is no separate recovery code: a pass looks only at the rows (never at what happened before) and runs the same
steps that requests run. Any number of processes may do it at a time, a row is claimed by its lease.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import threading
import time
from typing import Any

from sqlalchemy import delete

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import (
    actions,
    attachments,
    backups,
    cephx_users,
    flattens,
    freezes,
    gauges,
    group_snapshots,
    groups,
    image_limits,
    leftovers,
    own_clients,
    pools,
    services,
    snapshots,
    undelete,
    volumes,
)
from cinderlite.db import clock, models

LOG = logging.getLogger(__name__)

#: The least number of seconds between two looks at what is due.
_SHORTEST_NAP = 0.2
#: Seconds between two looks for cephx users that nothing explains, and between two counts of all rows.
SWEEP_EVERY, COUNT_EVERY = 15.0, 60.0

#: Every lifecycle, in the order in which a pass looks at them.
MACHINES = (
    freezes.LIFECYCLE,
    volumes.LIFECYCLE,
    snapshots.LIFECYCLE,
    group_snapshots.LIFECYCLE,
    groups.LIFECYCLE,
    attachments.LIFECYCLE,
    leftovers.LIFECYCLE,
    backups.LIFECYCLE,
    flattens.LIFECYCLE,
)


def once(world: World) -> int:
    """One pass; returns the number of rows that were worked on."""
    worked = flattens.begin(world)  # First, since an image in the trash may wait for it.
    worked += finish(world)
    worked += undelete.purge_due(world) + len(attachments.reconcile(world))
    return worked + len(image_limits.reconcile(world))


def finish(world: World) -> int:
    """Work on what has an intent, nobody at it, and its time come; how many rows that were.

    When the process is told to end the rest is left to others. Where there is more than a batch of a kind, the next
    pass follows at once.
    """
    worked = 0
    for machine in MACHINES:
        found, taken = machine.unfinished(world, world.settings.batch), 0
        for row_id in found:
            if world.jobs.stopped:
                return worked + taken
            owner = machine.claim(world, row_id, world.settings.lease)
            if owner is not None:
                taken += machine.run(world, row_id, owner).word != "waits"
        if taken and len(found) >= world.settings.batch:
            world.wake.set()
        worked += taken
    return worked


def due_in(world: World, most: float, looked: float) -> float:
    """Seconds until something gets its next try, `most` at most.

    What was due already when somebody looked, at `looked` by the database's clock, waits for something else.
    """
    with world.db.read() as session:
        found = [due for machine in MACHINES if (due := machine.next_due(session, looked)) is not None]
    return max(min([most, *found]), _SHORTEST_NAP)


def hasten(world: World, model: type[Any] | None = None, row_id: str | None = None) -> int:
    """Have interrupted work tried now that waits for its next try, of one kind of row or all; how many rows that is.

    What somebody still has in hand is left: nobody may take it away before its lease ends.
    """
    with world.db.write() as session:
        waiting = sum(
            machine.hasten(session, row_id) for machine in MACHINES if model is None or machine.model is model
        )
    world.wake.set()
    return waiting


def forget(world: World) -> None:
    """Remove what has served its time: user messages past their end, and what was done to servers long ago."""
    with world.db.write() as session:
        session.execute(delete(models.Message).where(models.Message.expires_at < models.utcnow()))
        actions.forget(session)


class Listener(threading.Thread):
    """Looks at a server as soon as its hypervisor tells that something has happened to it, until stopped.

    Only for speed: what nobody tells is found by the reconciler.
    """

    def __init__(self, world: World) -> None:
        super().__init__(name="listener", daemon=True)
        self.world = world
        self._stop_asked = threading.Event()
        self._news: queue.SimpleQueue[tuple[str, str | None] | None] = queue.SimpleQueue()
        world.guests.listen(lambda server_id, volume_id: self._news.put((server_id, volume_id)))

    def run(self) -> None:
        """The thread's work."""
        while (first := self._news.get()) is not None:
            found = {first}
            with contextlib.suppress(queue.Empty):
                while (more := self._news.get_nowait()) is not None:
                    found.add(more)
                return
            for server_id, volume_id in found:
                if not self._stop_asked.is_set():
                    self._look(server_id, volume_id)

    def _look(self, server_id: str, volume_id: str | None) -> None:
        try:
            attachments.look_at(self.world, server_id, volume_id)
        except errors.Unavailable as error:
            LOG.warning("server %s: %s", server_id, error)
        except Exception:  # As in a pass of the reconciler.
            LOG.exception("server %s: what was heard of it could not be looked at", server_id)

    def stop(self, timeout: float) -> None:
        """Ask the thread to end and wait at most `timeout` seconds for it."""
        self._stop_asked.set()
        self._news.put(None)
        self.join(timeout)


class Reconciler(threading.Thread):
    """Runs `once` every `interval` seconds, and when the world is woken, until stopped."""

    def __init__(self, world: World, interval: float) -> None:
        super().__init__(name="reconciler", daemon=True)
        self.world = world
        self.interval = interval
        self._stop_asked = threading.Event()
        self._sweep_at = self._count_at = -math.inf
        self._swept = cephx_users.Swept()
        self._leaves = False
        #: When what was due was last looked for, by the database's clock.
        self._looked = 0.0
        self._gauges = gauges.Gauges(world, MACHINES)

    def run(self) -> None:
        """The thread's work; an error is logged and the next pass tries again."""
        while not self._stop_asked.is_set():
            self.world.wake.clear()
            try:
                self._leave_if_stuck()
                self._gauges.ask()
                services.beat(self.world)
                own_clients.tell(self.world)
                self._looked = self._now()
                once(self.world)
                forget(self.world)
                if time.monotonic() >= self._sweep_at:
                    self._sweep_at = time.monotonic() + SWEEP_EVERY
                    self._swept = cephx_users.sweep(self.world, self._swept)
                if time.monotonic() >= self._count_at:
                    self._count_at = time.monotonic() + COUNT_EVERY
                    self._gauges.count()
                pools.learn(self.world, pools.FRESH_FOR)
                self._gauges.note()
            except errors.Unavailable as error:
                LOG.warning("reconcile: %s", error)
            except Exception:  # The loop must outlive a defect in one pass; the log has it all.
                LOG.exception("reconcile: a pass failed")
            self._rest()

    def _leave_if_stuck(self) -> None:
        """Have this process end if a call to Ceph does not, for until then its row is nobody else's.

        No call can be ended from outside; librbd and librados have been seen to wait for ever.
        """
        most = self.world.settings.stuck_after
        if self._leaves or not most:
            return
        clusters = {one.name: one.cluster for one in self.world.backends.values()}
        if self.world.backup_cluster is not None:
            clusters["backups"] = self.world.backup_cluster
        for name, cluster in clusters.items():
            if (overdue := cluster.overdue()) > most:
                LOG.error("a call to the Ceph of %s has not ended for %.0f s: this process ends", name, overdue)
                self._leaves = True
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _rest(self) -> None:
        """Until the next pass, or until woken, only finish what becomes due: a guest lets a disk go at any time."""
        end = time.monotonic() + self.interval
        while (left := end - time.monotonic()) > 0:
            try:
                nap = min(due_in(self.world, self.interval, self._looked), left)
                if self.world.wake.wait(nap):
                    return
                if nap < left:
                    self._looked = self._now()
                    finish(self.world)
            except errors.Unavailable as error:
                LOG.warning("reconcile: %s", error)
                self.world.wake.wait(left)
                return
            except Exception:
                LOG.exception("reconcile: what was due failed")
                self.world.wake.wait(left)
                return

    def _now(self) -> float:
        with self.world.db.read() as session:
            return clock.read(session)

    def stop(self, timeout: float) -> None:
        """Ask the thread to end and wait at most `timeout` seconds for it."""
        self._stop_asked.set()
        self.world.wake.set()
        self.join(timeout)
