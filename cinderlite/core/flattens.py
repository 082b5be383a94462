# SPDX-License-Identifier: Apache-2.0
"""Making clones whole that have too many images below them, or a backup, in the background and unseen by their owners.

What is to be done stands in the volumes' own rows: `clone_depth` above the back end's limit, or `restored_from`. A row
of `flattens` says that somebody is at it, or was; it goes when the image shares nothing any more. What a newcomer gets
wrong: nothing may wait for this or be refused because of it, so neither status nor `busy` of the volume know of it.
Instead it leaves off when its lease is gone (the volume was deleted, or moves), and `holders.strangers` does not count
its client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Select, exists, func, select, union, update

from cinderlite import errors, metrics
from cinderlite.context import Backend, World
from cinderlite.core import backups, snapshots, states
from cinderlite.core.states import GONE, Move
from cinderlite.db import models
from cinderlite.db.indexes import marked, unindexed
from cinderlite.db.session import refusing
from cinderlite.jobs import Jobs

LOG = logging.getLogger(__name__)

#: Seconds between two lines in the log about one image.
_TOLD_EVERY = 10.0
#: Statuses of volumes that this is begun for; those in others come later.
_READY = ("available", "in-use")


class _Machine(states.Machine):
    """Has threads of its own."""

    def _jobs(self, world: World) -> Jobs:
        return world.flattening


LIFECYCLE = _Machine(
    models.Flatten,
    #    verb       from                through       then  on failure
    Move("flatten", frozenset({"new"}), "flattening", GONE, GONE, long=True, patience=300.0),
)


def begin(world: World) -> int:
    """Begin as many as there is room for in this process; how many that were."""
    begun = 0
    for backend in world.backends.values():
        with world.db.read() as session:
            waiting = session.scalar(_shared(backend).with_only_columns(func.count()).order_by(None)) or 0
            found = list(session.scalars(_shared(backend).limit(world.flattening.room))) if waiting else []
        metrics.FLATTENS_WAITING.labels(backend.name).set(waiting)
        begun += sum(_begin(world, volume_id) for volume_id in found)
    return begun


def _shared(backend: Backend) -> Select[str]:
    """The volumes of a back end that share too much with others and are not begun yet, oldest first."""
    table = models.Volume
    deep = select(table.id).where(table.deleted.is_(False), table.clone_depth > backend.max_clone_depth)
    # A join: MariaDB would look at the union anew for each volume.
    wanted = union(deep, select(table.id).where(marked(table.restored_from))).subquery("wanted")
    there = unindexed(table.deleted).is_(False), unindexed(table.host) == backend.pool
    ready = unindexed(table.busy) == 0, unindexed(table.status).in_(_READY)
    begun = exists().where(models.Flatten.id == table.id)
    query = select(table.id).join(wanted, wanted.c.id == table.id).where(*there, *ready, ~begun)
    return query.order_by(table.created_at, table.id)


def _begin(world: World, volume_id: str) -> bool:
    row = models.Flatten(id=volume_id)
    owner = LIFECYCLE.start(row, "flatten", world.settings.lease, "flatten")
    taken = errors.Conflict("Another process has begun it.")
    try:
        with refusing(taken), world.db.write() as session:
            session.add(row)
    except errors.Conflict:
        return False
    LIFECYCLE.run(world, volume_id, owner)
    return True


@LIFECYCLE.step("flatten")
def _flatten(world: World, row: models.Flatten, _arguments: Mapping[str, Any]) -> None:
    with world.db.read() as session:
        volume = session.get(models.Volume, row.id)
    if volume is None or volume.deleted:
        return
    backend = world.backend(volume.host)
    # What an image below lost since, the row does not know; asking Ceph is cheaper than copying.
    most = 0 if volume.restored_from else backend.max_clone_depth
    try:
        depth = world.cluster_of(volume).depth(volume.image, most + 1)
        if depth > most:
            _work(world, row, volume)
            depth = 0
        if volume.restored_from is not None:
            backups.check_restored(world, volume)
    except errors.BackendError as error:  # Whatever it is, the volume is as it was; some day it may work.
        raise errors.CephUnavailable(error.message) from error
    with world.db.write() as session:
        session.execute(
            update(models.Volume).where(models.Volume.id == row.id).values(clone_depth=depth, restored_from=None)
        )


def _work(world: World, row: models.Flatten, volume: models.Volume) -> None:
    # A guest that has the image open is asked to do it, and loses the image if it does not answer.
    snapshots.ask_guests(world, volume.id)
    cluster = world.cluster_of(volume)
    if volume.multiattach:  # An attachment would do that, which Ceph may refuse once the image is open here.
        cluster.share(volume.image)
    with metrics.FLATTENS_RUNNING.track_inprogress():
        progress = _Progress(volume.id)
        try:
            cluster.flatten(volume.image, lambda clients: _announce(world, row, clients), progress.note)
        finally:
            progress.end()


def _announce(world: World, row: models.Flatten, clients: Collection[str]) -> None:
    """Say who will have the image open. Raises Superseded, and AtWork when something else is under way on the volume.

    In that order: whoever begins something on the volume either finds our client noted, or is found here.
    """
    table = models.Flatten
    # Those of an earlier try stay: the watch of a client that was killed lapses only after 30 s.
    known = sorted({*(row.clients or ()), *clients})
    with world.db.write() as session:
        noted = session.execute(
            update(table)
            .where(table.id == row.id, table.lease_owner == row.lease_owner)
            .values(clients=known)
            .execution_options(synchronize_session=False)
        )
    if noted.rowcount != 1:  # type: ignore[attr-defined]
        raise errors.Superseded
    with world.db.read() as session:
        if session.scalar(select(models.Volume.busy).where(models.Volume.id == row.id)) != 0:
            raise errors.AtWork(row.id)


class _Progress:
    """Tells the operator how far one image is: by a line now and then, and by what is left in /metrics."""

    def __init__(self, volume_id: str) -> None:
        self._volume_id = volume_id
        self._left = 0
        self._told = 0.0

    def note(self, done: int, total: int) -> None:
        """So many objects of so many are done; called for each."""
        metrics.FLATTEN_OBJECTS_LEFT.inc(total - done - self._left)
        self._left = total - done
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY or not self._told:
            self._told = now
            LOG.info("volume %s: its image is being made whole, %d of %d objects", self._volume_id, done, total)

    def end(self) -> None:
        """Nothing of it is left, or it is left off."""
        metrics.FLATTEN_OBJECTS_LEFT.dec(self._left)
        self._left = 0
