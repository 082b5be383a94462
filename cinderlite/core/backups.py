# SPDX-License-Identifier: Apache-2.0
"""Backups: who may make, restore and delete them when; `vault` knows what they are in Ceph.

A backup's row also decides for what it works on: while it is made the volume (or the snapshot) is `backing-up`, while
it is restored into a volume that one is `restoring-backup`, and both are given back when the backup's move settles.
What a newcomer gets wrong: a new volume is a clone of its backup at first, where that can be, and reads from its chain
until `flattens` has made it whole. So the chain of a deleted backup may have to wait in the trash, its row with it.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, exists, select, update
from sqlalchemy.orm import Session, aliased, selectinload, with_expression

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import Context, World
from cinderlite.core import encryption, freezes, messages, quotas, snapshots, states, vault, volumes
from cinderlite.core.progress import Progress, silent
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import models

LOG = logging.getLogger(__name__)

DELETABLE = frozenset({"available", "error", "error_deleting"})
#: Seconds between two notes in the row of how far a backup is.
_TOLD_EVERY = 2.0

_INCREMENT = aliased(models.Backup)
#: What the API shows is loaded with the rows, never one by one.
SHOWN = (
    selectinload(models.Backup.metadata_rows),
    with_expression(
        models.Backup.has_increments,
        exists().where(_INCREMENT.parent_id == models.Backup.id, _INCREMENT.status != "deleted"),
    ),
)

LIFECYCLE = states.Machine(
    models.Backup,
    #    verb       from                      through      then         on failure
    Move("create",  frozenset({"new"}),       "creating",  "available", "error", long=True),
    Move("import",  frozenset({"new"}),       "creating",  "available", "error"),
    Move("restore", frozenset({"available"}), "restoring", "available", "available", long=True),
    Move("delete",  DELETABLE,                "deleting",  GONE,        "error_deleting"),
    Move("purge",   frozenset({"deleted"}),   "deleted",   GONE,        RETURN, patience=60.0),
)  # fmt: skip


def cluster(world: World) -> Cluster:
    """The cluster with the backup pool. Raises BackupServiceMissing if none is configured."""
    if world.backup_cluster is None:
        raise errors.BackupServiceMissing
    return world.backup_cluster


def visible(ctx: Context, *, all_projects: bool = False) -> Select[models.Backup]:
    """The backups that the caller may see; an administrator asks for all projects explicitly."""
    query = select(models.Backup).where(models.Backup.status != "deleted")
    if not (ctx.is_admin and all_projects):
        query = query.where(models.Backup.project_id == ctx.project_id)
    return query


def get(ctx: Context, backup_id: str) -> models.Backup:
    """The backup of that id with its metadata. Raises BackupNotFound."""
    with ctx.world.db.read() as session:
        return find(ctx, session, backup_id)


def find(ctx: Context, session: Session, backup_id: str) -> models.Backup:
    """The same in a transaction."""
    query = visible(ctx, all_projects=True).where(models.Backup.id == backup_id)
    found = session.scalars(query.options(*SHOWN)).one_or_none()
    if found is None:
        raise errors.BackupNotFound(backup_id)
    return found


def metadata(backup: models.Backup) -> dict[str, str]:
    """A backup's metadata."""
    return {row.key: row.value for row in backup.metadata_rows}


# -- make


def create(
    ctx: Context,
    volume: models.Volume,
    *,
    snapshot_id: str | None = None,
    incremental: bool = False,
    in_use: bool = False,
    name: str | None = None,
    description: str | None = None,
    container: str | None = None,
    availability_zone: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> models.Backup:
    """Back up a volume, one in use only with `in_use`, or one of its snapshots, which may have outlived it; the row.

    Raises InvalidVolume, InvalidSnapshot, InvalidBackup (nothing to be incremental to), InvalidInput, OverQuota,
    BackupServiceMissing, CephUnavailable.
    """
    cluster(ctx.world).check()
    if availability_zone not in (None, ctx.settings.availability_zone):
        raise errors.InvalidInput(f"Availability zone '{availability_zone}' is invalid.")
    ctx.world.cluster_of(volume).check()
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        volumes.lock(session, volume.id, gone=snapshot_id is not None)
        current = volumes.find(ctx, session, volume.id, gone=snapshot_id is not None)
        snapshot = _take_snapshot(ctx, session, current, snapshot_id) if snapshot_id else None
        if snapshot is None:
            _refuse_wrong_state(current, in_use=in_use)
        moment = snapshot.created_at if snapshot else models.utcnow()
        parent = _parent(ctx, session, current.id, moment) if incremental else None
        size = snapshot.volume_size if snapshot else current.size
        quotas.admit_backup(session, ctx.settings, ctx.project_id, size)
        backup = models.Backup(
            id=models.new_id(),
            volume_id=current.id,
            snapshot_id=snapshot_id,
            parent_id=parent.id if parent else None,
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            name=name,
            description=description,
            size=size,
            container=container or cluster(ctx.world).pool,
            availability_zone=ctx.settings.availability_zone,
            host=ctx.settings.host,
            data_timestamp=moment,
            metadata_rows=[models.BackupMetadata(key=key, value=value) for key, value in (metadata or {}).items()],
        )
        backup.details = {
            "chain": parent.details["chain"] if parent else vault.chain_of(current.id, backup.id),
            "stored_as": backup.id,
            "snap": snapshot.held_as if snapshot else vault.snap_of(backup.id),
            "volume": _description(current),
        }
        owner = LIFECYCLE.start(backup, "create", ctx.settings.lease, ctx.request_id)
        session.add(backup)
        busy: models.Volume | models.Snapshot = snapshot or current
        busy.previous_status, busy.status = busy.status, "backing-up"
    LIFECYCLE.run(ctx.world, backup.id, owner)
    return backup


def _refuse_wrong_state(volume: models.Volume, *, in_use: bool) -> None:
    if volume.status not in ("available", "in-use") or volume.busy:
        raise errors.InvalidVolume(
            f'Volume to be backed up must be available or in-use, but the current status is "{volume.status}".'
        )
    if volume.status == "in-use" and not in_use:
        raise errors.InvalidVolume("Backing up an in-use volume must use the force flag.")


def _take_snapshot(ctx: Context, session: Session, volume: models.Volume, snapshot_id: str) -> models.Snapshot:
    snapshot = snapshots.find(ctx, session, snapshot_id)
    if snapshot.volume_id != volume.id and volume.deleted:
        raise errors.VolumeNotFound(volume.id)
    if snapshot.volume_id != volume.id:
        raise errors.InvalidSnapshot(f"snapshot {snapshot_id} is not one of volume {volume.id}")
    if snapshot.status != "available" or snapshot.busy:
        raise errors.InvalidSnapshot(
            f'Snapshot to be backed up must be available, but the current status is "{snapshot.status}".'
        )
    return snapshot


def _parent(ctx: Context, session: Session, volume_id: str, moment: datetime.datetime) -> models.Backup:
    """The caller's newest backup of what a volume was before `moment`."""
    table = models.Backup
    query = select(table).where(
        table.volume_id == volume_id,
        table.project_id == ctx.project_id,
        table.status.in_(("available", "restoring")),
        table.data_timestamp < moment,
    )
    found = session.scalars(query.order_by(table.data_timestamp.desc(), table.id).limit(1)).one_or_none()
    if found is None:
        raise errors.InvalidBackup("No backups available to do an incremental backup.")
    return found


def _description(volume: models.Volume) -> dict[str, Any]:
    """What of a volume a new one made from its backup takes over."""
    return {
        "name": volume.name,
        "bootable": volume.bootable,
        "volume_type_id": volume.volume_type_id,
        "image_metadata": {row.key: row.value for row in volume.image_metadata_rows},
        "metadata": volumes.metadata(volume),
    }


@LIFECYCLE.step("create")
def _create(world: World, backup: models.Backup, arguments: Mapping[str, Any]) -> dict[str, Any]:
    _wait_for_earlier(world, backup)
    with world.db.read() as session:
        volume = session.get_one(models.Volume, backup.volume_id)
        parent = session.get(models.Backup, backup.parent_id) if backup.parent_id else None
    volumes.wait_for_move(volume)
    if volume.encryption_key_id is not None:
        encryption.give_key(world, backup, volume.encryption_key_id)
    source, snap = world.cluster_of(volume), backup.details["snap"]
    own = backup.snapshot_id is None
    if own and not vault.holds(cluster(world), backup.details["chain"], backup.id):
        snapshots.ask_guests(world, volume.id)
        with states.while_busy(arguments), freezes.frozen(world, [volume.id]):
            source.snapshot(volume.image, snap)
    with source.opened(volume.image, snap) as original:
        pieces = vault.write(
            cluster(world),
            backup.details["chain"],
            backup.id,
            original,
            parent_id=parent.stored_as if parent else None,
            # The snapshot of the volume that has what the parent has.
            base=parent.details["snap"] if parent else None,
            progress=_telling(world, backup.id),
        )
    if own:
        with states.while_busy(arguments):
            _drop_older(world, backup, volume)
    return {"object_count": pieces, "fail_reason": None}


def _wait_for_earlier(world: World, backup: models.Backup) -> None:
    """Only one at a time writes to a chain. Raises CephUnavailable, to be tried again, while an earlier one does."""
    table = models.Backup
    with world.db.read() as session:
        others = session.scalars(
            select(table).where(
                table.volume_id == backup.volume_id, table.status == "creating", table.created_at < backup.created_at
            )
        )
        if any(other.details["chain"] == backup.details["chain"] for other in others):
            raise errors.CephUnavailable("an earlier backup is still being written to the same chain")


def _telling(world: World, backup_id: str) -> vault.Progress:
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told < _TOLD_EVERY:
            return
        told = time.monotonic()
        with world.db.write() as session:
            session.execute(
                update(models.Backup)
                .where(models.Backup.id == backup_id, models.Backup.status == "creating")
                .values(object_count=done)
                .execution_options(synchronize_session=False)
            )

    return tell


def _drop_older(world: World, backup: models.Backup, volume: models.Volume) -> None:
    """Leave only this backup's snapshot on the volume: the next increment needs no other."""
    table = models.Backup
    with world.db.read() as session:
        others = session.scalars(
            select(table).where(
                table.volume_id == volume.id,
                table.snapshot_id.is_(None),
                table.id != backup.id,
                table.status != "creating",
            )
        ).all()
    source = world.cluster_of(volume)
    there = {one.name for one in source.snapshots(volume.image)}
    for other in others:
        if vault.snap_of(other.stored_as) in there:
            source.remove_snapshot(volume.image, vault.snap_of(other.stored_as))


# -- restore


def restore(ctx: Context, backup: models.Backup, *, volume_id: str | None, name: str | None) -> models.Volume:
    """Write a backup over an available volume, or into a new one; that volume.

    Raises InvalidBackup, InvalidVolume, InvalidInput when the volume is too small, OverQuota.
    """
    refuse_unavailable(backup)
    if volume_id is None:
        return volumes.create(
            ctx,
            size=backup.size,
            source=source(ctx, backup),
            name=name or f"restore_backup_{backup.id}",
            metadata=backup.details["volume"]["metadata"],
        )
    volume = volumes.get(ctx, volume_id)
    cluster(ctx.world).check()
    ctx.world.cluster_of(volume).check()
    if (volume.encryption_key_id is None) != (backup.encryption_key_id is None):
        raise errors.InvalidInput("Of the volume and the backup one is encrypted: restore it into a new volume.")
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume_id)
        if current.status != "available" or current.busy:
            raise errors.InvalidVolume(
                f'Volume to be restored to must be available, but the current status is "{current.status}".'
            )
        if current.size < backup.size:
            raise errors.InvalidInput(
                f"volume size {current.size} is too small to restore backup of size {backup.size}."
            )
        owner = LIFECYCLE.begin(session, backup.id, "restore", ctx.settings.lease, ctx.request_id, volume_id=volume_id)
        if owner is not None:
            current.previous_status, current.status = current.status, "restoring-backup"
    if owner is None:
        refuse_unavailable(get(ctx, backup.id))
        raise errors.InvalidBackup("another operation on it is under way")
    LIFECYCLE.run(ctx.world, backup.id, owner)
    return volume


def refuse_unavailable(backup: models.Backup) -> None:
    """Raise InvalidBackup unless a backup can be read."""
    if backup.status != "available":
        raise errors.InvalidBackup(f'Backup status must be available, but the current status is "{backup.status}".')


@LIFECYCLE.step("restore")
def _restore(world: World, backup: models.Backup, arguments: Mapping[str, Any]) -> None:
    with world.db.read() as session:
        volume = session.get_one(models.Volume, arguments["volume_id"])
        newest = _newest_common(session, volume.id) if volume.id == backup.volume_id else None
    _write_over(world, backup, volume, newest)
    encryption.seal(world, volume, backup.encryption_key_id)


def _newest_common(session: Session, volume_id: str) -> tuple[str, str] | None:
    """The newest backup that was made of the volume itself, as it is stored, and its snapshot there."""
    table = models.Backup
    query = select(table).where(
        table.volume_id == volume_id, table.snapshot_id.is_(None), table.status.in_(("available", "restoring"))
    )
    newest = session.scalars(query.order_by(table.data_timestamp.desc(), table.id).limit(1)).one_or_none()
    return (newest.stored_as, vault.snap_of(newest.stored_as)) if newest else None


def _write_over(world: World, backup: models.Backup, volume: models.Volume, newest: tuple[str, str] | None) -> None:
    with world.cluster_of(volume).opened(volume.image, write=True) as target:
        vault.read(cluster(world), backup.details["chain"], backup.stored_as, target, newest=newest)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A backup that a volume can be made from; `at_once` if every back end can clone it."""

    id: str
    at_once: bool


def source(ctx: Context, backup: models.Backup) -> tuple[str, Found]:
    """What a new volume from a backup is made from: a key of SOURCES and what it takes. Raises InvalidBackup."""
    refuse_unavailable(backup)
    world = ctx.world
    # Where projects have namespaces, the keys of their servers' hosts open no pool that has everybody's backups.
    at_once = not any(backend.isolates for backend in world.backends.values()) and all(
        _can_clone(world, backend.cluster, backup) for backend in world.backends.values()
    )
    return "backup_id", Found(backup.id, at_once)


def _can_clone(world: World, target: Cluster, backup: models.Backup) -> bool:
    """Whether a cluster has a backup and lets us read it there, as servers will; if that is not known it is copied."""
    pool = cluster(world)
    chain, snap = backup.details["chain"], vault.snap_of(backup.stored_as)
    try:
        return target.fsid() == pool.fsid() and target.size_elsewhere(pool.pool, chain, snap) >= 0
    except (errors.CephError, errors.Unavailable) as error:
        LOG.info("backup %s cannot be cloned: %s", backup.id, error)
        return False


def _origin(ctx: Context, session: Session, found: Found) -> volumes.Origin:
    backup = find(ctx, session, found.id)
    refuse_unavailable(backup)
    cluster(ctx.world)
    then = backup.details["volume"]
    known = session.get(models.VolumeType, then["volume_type_id"]) if then["volume_type_id"] else None
    return volumes.Origin(
        size=backup.size,
        volume_type_id=known.id if known else None,
        bootable=then["bootable"],
        image_metadata=then["image_metadata"],
        encryption_key_id=backup.encryption_key_id,
        verb="create" if found.at_once else "fill",
        arguments={"id": backup.id, "at_once": found.at_once},
    )


def _fill(world: World, volume: models.Volume, source: Mapping[str, Any]) -> dict[str, Any]:
    with world.db.read() as session:
        backup = session.get(models.Backup, source["id"])
    if backup is None:
        raise errors.BackupNotFound(source["id"])
    target, size = world.cluster_of(volume), encryption.image_bytes(volume)
    if source["at_once"]:
        chain, snap = backup.details["chain"], vault.snap_of(backup.stored_as)
        target.clone_elsewhere(cluster(world).pool, chain, snap, volume.image, size)
        return {"clone_depth": 1, "restored_from": backup.id}
    target.create(volume.image, size)
    _write_over(world, backup, volume, None)
    return {}


volumes.SOURCES["backup_id"] = volumes.Source(_origin, _fill)


def check_restored(world: World, volume: models.Volume) -> None:
    """Compare what a volume was cloned from with the digests, unless the backup is gone; tell it if they differ."""
    with world.db.read() as session:
        backup = session.get(models.Backup, volume.restored_from)
    if backup is None or backup.status not in ("available", "restoring"):
        return
    try:
        vault.verify(cluster(world), backup.details["chain"], backup.stored_as)
    except (errors.BackupDamaged, errors.ImageNotFound) as error:
        _tell_damage(world, volume.id, backup.id, error.message)


def _tell_damage(world: World, volume_id: str, backup_id: str, text: str) -> None:
    """Have nobody use a volume that is not what it was; one that is in use is its owner's to decide about."""
    with world.db.write() as session:
        volume = session.get(models.Volume, volume_id, with_for_update=True)
        backup = session.get(models.Backup, backup_id)
        if volume is None or volume.deleted or backup is None or backup.status not in ("available", "restoring"):
            return  # What was found missing has been deleted.
        LOG.error("volume %s was restored from a backup that is damaged: %s", volume_id, text)
        if volume.status == "available" and not volume.busy:
            volume.status, volume.updated_at = "error", models.utcnow()
        messages.leave(session, volume, "fill", text)


# -- delete


def delete(ctx: Context, backup: models.Backup, *, force: bool = False) -> None:
    """Delete a backup, whatever others there are of the volume; one that is being made is given up.

    With `force` its status does not matter. Raises InvalidBackup while something is made from it.
    """
    cluster(ctx.world).check()
    with ctx.world.db.write() as session:
        quotas.lock(session, backup.project_id)
        _refuse_needed(session, backup.id)
        given_up = LIFECYCLE.interrupt(session, backup.id, "delete", ctx.request_id, frozenset({"creating"}))
        owner = None
        if not given_up:
            volumes.hold(session, backup.volume_id)  # It may be about to move.
            owner = LIFECYCLE.begin(
                session,
                backup.id,
                "delete",
                ctx.settings.lease,
                ctx.request_id,
                sources=frozenset({backup.status}) if force else None,
            )
    if owner is not None:
        LIFECYCLE.run(ctx.world, backup.id, owner)
    elif not given_up:
        now = get(ctx, backup.id)  # Gone meanwhile is a 404, not a wrong state.
        raise errors.InvalidBackup(
            f'Backup status must be available or error, but the current status is "{now.status}".'
        )


def _refuse_needed(session: Session, backup_id: str) -> None:
    """Raise InvalidBackup while an increment to it is written, or a volume filled from it."""
    table = models.Backup
    increments = select(table.id).where(table.parent_id == backup_id, table.status == "creating")
    filling = session.scalars(select(models.Volume.intent).where(models.Volume.busy == 1))
    sources = [intent["source"] for intent in filling if intent and "source" in intent]
    # That of a move in use is a pool's name.
    if session.execute(increments).first() or any(isinstance(one, dict) and one["id"] == backup_id for one in sources):
        raise errors.InvalidBackup("something is being made from it; delete it when that is done")


@LIFECYCLE.step("delete")
def _delete(world: World, backup: models.Backup, arguments: Mapping[str, Any]) -> dict[str, Any]:
    chain = backup.details["chain"]
    with world.db.read() as session:
        volume = session.get(models.Volume, backup.volume_id)
    if any(other.stored_as == backup.stored_as for other in _others(world, backup)):
        return {}  # The same data are known under another id, too.
    if backup.snapshot_id is None and volume is not None and not volume.deleted:
        volumes.wait_for_move(volume)
        snapshots.ask_guests(world, volume.id)
        with states.while_busy(arguments):
            world.cluster_of(volume).remove_snapshot(volume.image, vault.snap_of(backup.stored_as))
    vault.remove(cluster(world), chain, backup.stored_as)
    encryption.forget_key(world, backup)
    # Only now: of two that are deleted at a time one finds that it is the last.
    last = all(other.details["chain"] != chain for other in _others(world, backup))
    try:
        image_id = vault.remove_chain(cluster(world), chain) if last else None
    except errors.ImageBusy as error:
        # Nobody but the service opens a chain, and nothing is read from this one: whoever that is has ended, as a rule.
        raise errors.CephUnavailable(error.message) from error
    if image_id is None:
        return {}
    return {"followed_by": {**arguments, "verb": "purge", "image_id": image_id}}


def _others(world: World, backup: models.Backup) -> list[models.Backup]:
    """The backups of the same volume that stay."""
    table = models.Backup
    staying = table.volume_id == backup.volume_id, table.id != backup.id, table.status.not_in(("deleting", "deleted"))
    with world.db.read() as session:
        return list(session.scalars(select(table).where(*staying)))


@LIFECYCLE.step("purge")
def _purge(world: World, _backup: models.Backup, arguments: Mapping[str, Any]) -> None:
    try:
        gone = cluster(world).purge(arguments["image_id"])
    except errors.BackendError as error:  # A volume that was restored from it is not whole yet.
        raise errors.CephUnavailable(error.message) from error
    if not gone:
        raise errors.CephUnavailable(f"chain {arguments['image_id']} cannot be removed from the trash yet")


# -- how it ends


@LIFECYCLE.settled
def _settled(
    session: Session, backup: models.Backup, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    verb = intent["verb"]
    if verb in ("create", "delete"):
        _give_back(session, backup)
    if verb == "restore":
        restored = _settle_volume(session, intent["volume_id"], "error_restoring" if error else "available")
        if restored is not None and error is None:
            restored.bootable = backup.details["volume"]["bootable"]
    if error is not None:
        if verb != "restore":
            backup.fail_reason = error.message[:255]
        messages.leave(session, backup, verb, error.message, request_id=intent["request_id"])


def _give_back(session: Session, backup: models.Backup) -> None:
    if backup.snapshot_id is None:
        _settle_volume(session, backup.volume_id, None)
        return
    snapshot = session.get(models.Snapshot, backup.snapshot_id)
    if snapshot is not None and snapshot.status == "backing-up":
        snapshot.status = snapshot.previous_status or "available"


def _settle_volume(session: Session, volume_id: str, status: str | None) -> models.Volume | None:
    """Give a volume that this module had taken its status, with None the one that it had; the volume if it was so."""
    volume = session.get(models.Volume, volume_id, with_for_update=True)
    if volume is None or volume.status != ("restoring-backup" if status else "backing-up"):
        return None
    volume.status = status or volume.previous_status or "available"
    volume.updated_at = models.utcnow()
    return volume


# -- by hand


def change(
    ctx: Context, backup: models.Backup, *, metadata: Mapping[str, str] | None = None, **changes: Any
) -> models.Backup:
    """Change name, description or all of the metadata and return the new row."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, backup.id)
        for key, value in changes.items():
            setattr(current, key, value)
        if metadata is not None:
            volumes.write_metadata(session, current.metadata_rows, models.BackupMetadata, metadata, replace=True)
        current.updated_at = models.utcnow()
    return current


def reset_status(ctx: Context, backup: models.Backup, status: str) -> None:
    """Set the status by hand. Raises InvalidBackup while an operation is under way: its end would be lost."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, backup.id)
        if current.busy:
            raise errors.InvalidBackup(f"an operation on it is under way ({current.status})")
        current.status, current.updated_at = status, models.utcnow()


def verify(world: World, backup_id: str, progress: Progress = silent) -> int:
    """Compare a backup with the digests taken when it was made; the number of its pieces. Raises BackupDamaged."""
    with world.db.read() as session:
        backup = session.get(models.Backup, backup_id)
    if backup is None:
        raise errors.BackupNotFound(backup_id)
    refuse_unavailable(backup)
    return vault.verify(cluster(world), backup.details["chain"], backup.stored_as, progress)
