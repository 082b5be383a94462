# SPDX-License-Identifier: Apache-2.0
"""Finish what has an intent and nobody working on it; make guests and attachment rows agree.

There is no separate recovery code: a pass looks only at the rows (never at what happened before) and runs the same
steps that requests run. Any number of processes may do it at a time, a row is claimed by its lease.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from sqlalchemy import delete

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import (
    attachments,
    backups,
    flattens,
    group_snapshots,
    groups,
    pools,
    services,
    snapshots,
    undelete,
    volumes,
)
from cinderlite.db import models

LOG = logging.getLogger(__name__)

#: Every lifecycle, in the order in which a pass looks at them.
MACHINES = (
    volumes.LIFECYCLE,
    snapshots.LIFECYCLE,
    group_snapshots.LIFECYCLE,
    groups.LIFECYCLE,
    attachments.LIFECYCLE,
    backups.LIFECYCLE,
    flattens.LIFECYCLE,
)


def once(world: World) -> int:
    """One pass; returns the number of rows that were worked on."""
    worked = 0
    for machine in MACHINES:
        for row_id in machine.unfinished(world, world.settings.batch):
            owner = machine.claim(world, row_id, world.settings.lease)
            if owner is not None:
                machine.run(world, row_id, owner)
                worked += 1
    return worked + undelete.purge_due(world) + flattens.begin(world) + len(attachments.reconcile(world))


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
    """Remove what has served its time: user messages past their end."""
    with world.db.write() as session:
        session.execute(delete(models.Message).where(models.Message.expires_at < models.utcnow()))


class Reconciler(threading.Thread):
    """Runs `once` every `interval` seconds, and when the world is woken, until stopped."""

    def __init__(self, world: World, interval: float) -> None:
        super().__init__(name="reconciler", daemon=True)
        self.world = world
        self.interval = interval
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """The thread's work; an error is logged and the next pass tries again."""
        while not self._stop_asked.is_set():
            self.world.wake.clear()
            try:
                services.beat(self.world)
                once(self.world)
                forget(self.world)
                pools.learn(self.world, pools.FRESH_FOR)
            except errors.Unavailable as error:
                LOG.warning("reconcile: %s", error)
            except Exception:  # The loop must outlive a defect in one pass; the log has it all.
                LOG.exception("reconcile: a pass failed")
            self.world.wake.wait(self.interval)

    def stop(self, timeout: float) -> None:
        """Ask the thread to end and wait at most `timeout` seconds for it."""
        self._stop_asked.set()
        self.world.wake.set()
        self.join(timeout)
