# SPDX-License-Identifier: Apache-2.0
"""Snapshots, and the volumes that are made from them or from other volumes.

An RBD clone shares its parent's data, and Ceph keeps them for as long as a clone needs them: so a snapshot or a volume
can be deleted at any time, whoever was made from it. What a newcomer gets wrong: librbd asks the client that writes to
an image to take its snapshot, and *blocklists* one that does not answer. So a guest is asked for a sign of life first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import (
    copies,
    encryption,
    freezes,
    holders,
    image_metadata,
    messages,
    quotas,
    services,
    states,
    volumes,
    whole,
)
from cinderlite.core.states import GONE, Move
from cinderlite.db import models

DELETABLE = frozenset({"available", "error", "error_deleting"})

LIFECYCLE = states.Machine(
    models.Snapshot,
    #    verb      from                through     then         on failure
    Move("create", frozenset({"new"}), "creating", "available", "error"),
    Move("manage", frozenset({"new"}), "creating", "available", "error"),
    Move("unmanage", DELETABLE,        "unmanaging", GONE,      "error"),
    Move("delete", DELETABLE,          "deleting", GONE,        "error_deleting"),
)  # fmt: skip


def visible(ctx: Context, *, all_projects: bool = False) -> Select[models.Snapshot]:
    """The snapshots that the caller may see; an administrator asks for all projects explicitly."""
    query = select(models.Snapshot)
    if not (ctx.is_admin and all_projects):
        query = query.where(models.Snapshot.project_id == ctx.project_id)
    return query


def get(ctx: Context, snapshot_id: str) -> models.Snapshot:
    """The snapshot of that id, with its metadata and its volume. Raises SnapshotNotFound."""
    with ctx.world.db.read() as session:
        return find(ctx, session, snapshot_id)


def find(ctx: Context, session: Session, snapshot_id: str) -> models.Snapshot:
    """The same in a transaction."""
    query = visible(ctx, all_projects=True).where(models.Snapshot.id == snapshot_id)
    found = session.scalars(
        query.options(selectinload(models.Snapshot.metadata_rows), joinedload(models.Snapshot.volume))
    ).one_or_none()
    if found is None or not (ctx.is_admin or found.project_id == ctx.project_id):
        raise errors.SnapshotNotFound(snapshot_id)
    return found


def create(
    ctx: Context,
    volume: models.Volume,
    *,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    in_use: bool = False,
) -> models.Snapshot:
    """Take a snapshot of a volume, of one in use only with `in_use`, and return its row as accepted.

    Raises InvalidVolume, OverQuota, CephUnavailable, InvalidInput on a frozen back end.
    """
    ctx.world.cluster_of(volume).check()
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        current = volumes.lock(session, volume.id)
        snapshot = new(ctx, session, current, in_use=in_use, name=name, description=description, metadata=metadata)
        owner = LIFECYCLE.start(snapshot, "create", ctx.settings.lease, ctx.request_id)
        session.add(snapshot)
    LIFECYCLE.run(ctx.world, snapshot, owner)
    return snapshot


def new(
    ctx: Context,
    session: Session,
    volume: models.Volume,
    *,
    in_use: bool,
    metadata: Mapping[str, str] | None = None,
    **columns: Any,
) -> models.Snapshot:
    """Admit a snapshot of a volume that the transaction holds; its row. Call under `quotas.lock`."""
    services.refuse_frozen(session, volume.host)
    _refuse_wrong_state(volume, in_use=in_use)
    kind = session.get_one(models.VolumeType, volume.volume_type_id)
    quotas.admit_snapshot(session, ctx.settings, ctx.project_id, kind, volume.size)
    return models.Snapshot(
        id=models.new_id(),
        volume_id=volume.id,
        volume_type_id=volume.volume_type_id,
        volume_size=volume.size,
        project_id=ctx.project_id,
        user_id=ctx.user_id,
        encryption_key_id=volume.encryption_key_id,
        progress="0%",
        metadata_rows=[models.SnapshotMetadata(key=key, value=value) for key, value in (metadata or {}).items()],
        **columns,
    )


def _refuse_wrong_state(volume: models.Volume, *, in_use: bool) -> None:
    allowed = ("available", "in-use") if in_use else ("available",)
    if volume.status not in allowed or volume.migration_status not in (None, "success", "error"):
        raise errors.InvalidVolume(
            f"Volume {volume.id} status must be {' or '.join(allowed)}, but current status is: {volume.status}."
        )


@LIFECYCLE.step("create")
def _create(world: World, snapshot: models.Snapshot, arguments: Mapping[str, Any]) -> dict[str, Any]:
    volume = volume_of(world, snapshot)
    ask_guests(world, volume.id)
    with states.while_busy(arguments), freezes.frozen(world, [volume.id]):
        world.cluster_of(volume).snapshot(volume.image, snapshot.snap)
    return {"progress": "100%"}


def ask_guests(world: World, volume_id: str) -> None:
    """Have every guest that we plugged a volume into give a sign of life. Raises GuestUnreachable, GuestTimeout."""
    for server_id in holders.servers(world, [volume_id]):
        try:
            world.guests.find(server_id, fresh=False).disks()
        except (errors.GuestGone, errors.ServerNotFound):
            continue  # What does not exist any more is not harmed either.


def volume_of(world: World, snapshot: models.Snapshot) -> models.Volume:
    """The volume of a snapshot, where its image can be worked on. Raises AtWork while that is on its way elsewhere."""
    found = whole.named(world, snapshot.volume_id)
    volumes.wait_for_move(found)
    return found


def update(ctx: Context, snapshot: models.Snapshot, **changes: Any) -> models.Snapshot:
    """Change name or description and return the new row."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, snapshot.id)
        for key, value in changes.items():
            setattr(current, key, value)
        current.updated_at = models.utcnow()
    return current


def delete(ctx: Context, snapshot: models.Snapshot, *, force: bool = False) -> None:
    """Delete a snapshot, with `force` whatever its status.

    Raises InvalidSnapshot when its state does not allow it, or while a volume is being made from it, InvalidInput on a
    frozen back end.
    """
    ctx.world.cluster_of(snapshot.volume).check()
    with ctx.world.db.write() as session:
        services.refuse_frozen(session, snapshot.volume.host)
        refuse_source(session, snapshot)
        owner = LIFECYCLE.begin(
            session,
            snapshot.id,
            "delete",
            ctx.settings.lease,
            ctx.request_id,
            *([] if force else [models.Snapshot.group_snapshot_id.is_(None)]),
            models.Snapshot.group_snap.is_(None),
            sources=frozenset({snapshot.status}) if force else None,
        )
    if owner is None:
        get(ctx, snapshot.id)  # Gone meanwhile is a 404, not a wrong state.
        raise errors.InvalidSnapshot("Snapshot status must be available or error and must not be part of a group.")
    LIFECYCLE.run(ctx.world, snapshot.id, owner)
    if snapshot.volume.deleted:
        ctx.world.wake.set()  # It may have been the last one.


def refuse_source(session: Session, snapshot: models.Snapshot) -> models.Volume:
    """Raise InvalidSnapshot while a volume is being made from a snapshot, even if that was broken off.

    Its volume, which may have been deleted, is locked.
    """
    volume = volumes.lock(session, snapshot.volume_id, gone=True)
    if session.scalar(select(models.Volume.id).where(volumes.BEING_MADE, models.Volume.snapshot_id == snapshot.id)):
        raise errors.InvalidSnapshot(f"a volume is being made from snapshot {snapshot.id}")
    return volume


@LIFECYCLE.step("delete")
def _delete(world: World, snapshot: models.Snapshot, arguments: Mapping[str, Any]) -> None:
    volume = volume_of(world, snapshot)
    ask_guests(world, volume.id)
    with states.while_busy(arguments):
        world.cluster_of(volume).remove_snapshot(volume.image, snapshot.snap)


@LIFECYCLE.settled
def _settled(
    session: Session, snapshot: models.Snapshot, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    if error is not None:
        messages.leave(session, snapshot, intent["verb"], error.message, request_id=intent["request_id"])


def reset_status(ctx: Context, snapshot: models.Snapshot, status: str) -> None:
    """Set the status by hand. Raises InvalidSnapshot while an operation is under way: its end would be lost."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, snapshot.id)
        if current.busy:
            raise errors.InvalidSnapshot(f"an operation on it is under way ({current.status})")
        current.status, current.updated_at = status, models.utcnow()


#: What a compute service that takes the snapshot itself may report: from → to.
REPORTABLE = {
    "creating": frozenset({"creating", "available", "error"}),
    "deleting": frozenset({"deleting", "error_deleting"}),
}


def report(ctx: Context, snapshot: models.Snapshot, status: str, progress: str | None) -> None:
    """Note how far somebody else is with a snapshot. Raises InvalidInput for a move that cannot be."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, snapshot.id)
        if status not in REPORTABLE.get(current.status, frozenset()):
            raise errors.InvalidInput(
                f"Provided snapshot status {status} not allowed for snapshot with status {current.status}."
            )
        current.status, current.updated_at = status, models.utcnow()
        if progress is not None:
            current.progress = progress


# -- metadata


def metadata(snapshot: models.Snapshot) -> dict[str, str]:
    """A snapshot's metadata."""
    return {row.key: row.value for row in snapshot.metadata_rows}


def set_metadata(
    ctx: Context, snapshot: models.Snapshot, values: Mapping[str, str], *, replace: bool
) -> dict[str, str]:
    """Merge or replace metadata and return all of it."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, snapshot.id)
        volumes.write_metadata(session, current.metadata_rows, models.SnapshotMetadata, values, replace=replace)
        current.updated_at = models.utcnow()
    return metadata(current)


def delete_metadata(ctx: Context, snapshot: models.Snapshot, key: str) -> None:
    """Remove one key. Raises SnapshotMetadataNotFound."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, snapshot.id)
        row = next((row for row in current.metadata_rows if row.key == key), None)
        if row is None:
            raise errors.SnapshotMetadataNotFound(snapshot.id, key)
        current.metadata_rows.remove(row)
        current.updated_at = models.utcnow()


# -- volumes from snapshots and from volumes


def _like(volume: models.Volume, **more: Any) -> volumes.Origin:
    return volumes.Origin(
        size=more.pop("size", volume.size),
        host=volume.host,
        availability_zone=volume.availability_zone,
        volume_type_id=volume.volume_type_id,
        bootable=volume.bootable,
        image_metadata=image_metadata.shown(volume),
        encryption_key_id=volume.encryption_key_id,
        columns={"clone_depth": volume.clone_depth + 1, **more},
    )


def _from_snapshot(ctx: Context, session: Session, snapshot_id: str) -> volumes.Origin:
    of = session.scalar(select(models.Snapshot.volume_id).where(models.Snapshot.id == snapshot_id))
    if of is not None:
        volumes.hold(session, of)
    snapshot = find(ctx, session, snapshot_id)
    if snapshot.status != "available":
        raise errors.InvalidSnapshot(
            f"Snapshot {snapshot_id} status must be available, but current status is: {snapshot.status}."
        )
    needed = selectinload(models.Volume.image_metadata_rows)
    query = select(models.Volume).where(models.Volume.id == snapshot.volume_id).options(needed)
    # The snapshot brought the row along, without what else is needed here.
    volume = session.scalars(query.execution_options(populate_existing=True)).one()
    if volumes.is_leaving(volume):
        raise errors.InvalidSnapshot(f"the volume of snapshot {snapshot_id} is on its way to another pool")
    if snapshot.group_snap is None:
        return _like(volume, size=snapshot.volume_size, snapshot_id=snapshot_id)
    copied = _like(volume, size=snapshot.volume_size, snapshot_id=snapshot_id, clone_depth=0)
    return dataclasses.replace(copied, verb="fill")


def _fill_from_snapshot(world: World, volume: models.Volume, source: Mapping[str, Any]) -> None:
    with world.db.read() as session:
        snapshot = session.get(models.Snapshot, source["id"])
        if snapshot is None:
            raise errors.SnapshotNotFound(source["id"])
        parent = session.get_one(models.Volume, snapshot.volume_id)
    cluster, there, size = world.cluster_of(volume), world.cluster_of(parent), encryption.image_bytes(volume)
    if snapshot.group_snap is None:
        cluster.clone(parent.image, snapshot.snap, volume.image, size, source=there)
    else:
        cluster.create(volume.image, size)
        copies.write_over(cluster, volume.image, there, parent.image, snapshot.group_snap)


def _from_volume(ctx: Context, session: Session, volume_id: str) -> volumes.Origin:
    volumes.hold(session, volume_id)
    volume = volumes.find(ctx, session, volume_id)
    if volume.status not in ("available", "in-use"):
        raise errors.InvalidVolume(
            f"Volume {volume_id} status must be available or in-use, but current status is: {volume.status}."
        )
    made = _like(volume, source_volid=volume_id)
    return dataclasses.replace(made, arguments={"namespace": volume.namespace})


def _fill_from_volume(world: World, volume: models.Volume, source: Mapping[str, Any]) -> None:
    ask_guests(world, source["id"])
    cluster, size = world.cluster_of(volume), encryption.image_bytes(volume)
    there = cluster.within(source.get("namespace", ""))
    with freezes.frozen(world, [source["id"]]):
        cluster.copy(f"volume-{source['id']}", volume.image, size, source=there)


volumes.SOURCES["snapshot_id"] = volumes.Source(_from_snapshot, _fill_from_snapshot, seals=True)
volumes.SOURCES["source_volid"] = volumes.Source(_from_volume, _fill_from_volume, seals=True)
