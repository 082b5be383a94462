# SPDX-License-Identifier: Apache-2.0
"""Deleted volumes whose image is still in the trash: which there are, how one comes back, and when they go for good.

What a newcomer gets wrong: coming back and going for good are moves of the volume's row like all others, and both
begin from `deleted` at rest. So only one of them gets it, and what was begun is finished after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import kept, quotas, volumes, whole
from cinderlite.db import clock, models
from cinderlite.db.indexes import marked, unindexed


def _can_come_back() -> tuple[ColumnElement[bool], ...]:
    table = models.Volume
    # Of those that were ever deleted few can; so the moment is what leaves few.
    deleted = unindexed(table.deleted).is_(True), unindexed(table.status) == "deleted", unindexed(table.busy) == 0
    return marked(table.purge_at), *deleted


def listed(world: World) -> Sequence[models.Volume]:
    """The deleted volumes that can be brought back, those first that go first."""
    table = models.Volume
    with world.db.read() as session:
        return session.scalars(select(table).where(*_can_come_back()).order_by(table.purge_at, table.id)).all()


def undelete(world: World, volume_id: str, *, force: bool = False) -> models.Volume:
    """Bring a deleted volume back with its snapshots, with `force` beyond its project's quota; the row as it is then.

    One that is there is left as it is. Raises VolumeNotFound, InvalidVolume when its time is over, OverQuota, and what
    Ceph says; after CephUnavailable and CephTimeout the service goes on with it.
    """
    found = whole.named(world, volume_id)
    if found.deleted:
        world.cluster_of(found).check()
        with world.db.write() as session:
            owner = _accept(session, world, found, force=force)
        if owner is not None:
            outcome = volumes.LIFECYCLE.run(world, volume_id, owner)
            if outcome.error is not None:
                raise outcome.error
    return whole.named(world, volume_id)


def _accept(session: Session, world: World, volume: models.Volume, *, force: bool) -> str | None:
    """Admit a volume again and begin to bring it back; the lease, None if somebody else did."""
    quotas.lock(session, volume.project_id)
    current = session.get_one(models.Volume, volume.id, with_for_update=True)
    if not current.deleted:
        return None
    snapshots = kept.snapshots(current)
    if current.consumes_quota and not force:
        kind = session.get_one(models.VolumeType, current.volume_type_id)
        sizes = [one.volume_size for one in snapshots if one.consumes_quota]
        quotas.admit_transfer(session, world.settings, current.project_id, kind, [current.size, *sizes])
    owner = volumes.LIFECYCLE.begin(
        session, volume.id, "undelete", world.settings.lease, "undelete", *_can_come_back(),
        before=(current.kept or {}).get("status"),
    )  # fmt: skip
    if owner is None:
        raise errors.InvalidVolume(f"volume {volume.id} cannot be brought back: its image is gone, or about to go")
    current.deleted, current.group_id, current.migration_status = False, None, None
    session.add_all(snapshots)
    return owner


@volumes.LIFECYCLE.step("undelete")
def _undelete(world: World, volume: models.Volume, _arguments: Mapping[str, Any]) -> dict[str, Any]:
    cluster = world.cluster_of(volume)
    remembered = volume.kept or {}
    cluster.restore(remembered["image_id"], volume.image)
    there = {one.name for one in cluster.snapshots(volume.image)}
    table = models.Snapshot
    with world.db.write() as session:
        known = set(volumes.backup_snaps(session, [volume.id]))
        for row in session.scalars(select(table).where(table.volume_id == volume.id)):
            known.add(row.snap)
            if row.status == "restoring" and row.snap not in there:
                session.delete(row)  # Somebody took it away by hand.
    for snap in sorted(there.intersection(remembered["snaps"]) - known):
        cluster.remove_snapshot(volume.image, snap)  # Of a backup that was deleted since.
    return {"purge_at": None, "kept": None, "deleted_at": None}


def purge_due(world: World) -> int:
    """Begin to remove for good what can no longer be brought back and no snapshot needs; how many volumes that were."""
    table = models.Volume
    return _purge_some(world, *_can_come_back(), table.purge_at < clock.now()) + _purge_some(
        world, table.deleted.is_(True), table.status == "outlived", table.busy == 0, ~_HAS_SNAPSHOTS
    )


#: New ones are taken of no deleted volume, so what is true once stays.
_HAS_SNAPSHOTS = exists().where(models.Snapshot.volume_id == models.Volume.id)


def _purge_some(world: World, *due: ColumnElement[bool]) -> int:
    table = models.Volume
    with world.db.read() as session:
        ids = session.scalars(select(table.id).where(*due).order_by(table.purge_at).limit(world.settings.batch)).all()
    purged = sum(_purge(world, volume_id, due) for volume_id in ids)
    if purged and len(ids) == world.settings.batch:
        world.wake.set()  # There may be more.
    return purged


def _purge(world: World, volume_id: str, due: tuple[ColumnElement[bool], ...]) -> bool:
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume_id, with_for_update=True)
        remembered, table = row.kept or {}, models.Snapshot
        gone = {name: remembered.get(name) for name in ("image_id", "snaps", "named")}
        outlived = session.scalar(select(table.id).where(table.volume_id == volume_id).limit(1)) is not None
        verb = "hollow" if outlived else "purge"
        owner = volumes.LIFECYCLE.begin(session, volume_id, verb, world.settings.lease, "purge", *due, **gone)
        if owner is None:
            return False
        row.purge_at, row.kept = None, None
    volumes.LIFECYCLE.run(world, volume_id, owner)
    return True
