# SPDX-License-Identifier: Apache-2.0
"""Taking over images and snapshots that are in the pool already, and letting go of ours without deleting them.

What is taken over is given Cinder's name for it; what is let go keeps that name, so that another cinderlite, or a
Cinder, can take it over in turn. Everything is looked at before anything is accepted, so a bad reference is a 400.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import exists, or_, select, true
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import Backend, Context, World
from cinderlite.core import encryption, limits, quotas, services, snapshots, types, volumes
from cinderlite.db import models

#: The only key of a reference: the name of the image, maybe with its namespace, or of the RBD snapshot.
KEY = "source-name"
#: With more names than this the whole table is read instead.
MOST_IDS = 500


@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
    """Of an image in a pool; one in a namespace is written NAMESPACE/IMAGE, as Ceph's commands do."""

    namespace: str
    image: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.image}" if self.namespace else self.image

    @classmethod
    def of(cls, text: str) -> _Name:
        """The name in a reference."""
        namespace, _, image = text.rpartition("/")
        return cls(namespace, image)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """Something in the pool, its size in GiB.

    `reason` says why it cannot be taken over, `owner` is the id of what it is already.
    """

    name: str
    size: int
    reason: str | None = None
    owner: str | None = None
    #: Name of the image that a snapshot is of.
    image: str | None = None


def backend(ctx: Context, host: str) -> Backend:
    """The back end that `host@backend` or `host@backend#pool` names. Raises ServiceNotFound."""
    for found in ctx.world.backends.values():
        if host in (found.pool, found.pool.partition("#")[0]):
            return found
    raise errors.ServiceNotFound(host)


def source(reference: Any) -> str:
    """The name in a reference, which is an object or, of old, just text. Raises InvalidInput."""
    name = reference.get(KEY) if isinstance(reference, Mapping) else reference
    if not isinstance(name, str) or not name:
        raise errors.InvalidInput(f"Invalid reference: it must have the key {KEY} with a name.")
    return name


def _gib(size_bytes: int) -> int:
    return -(-size_bytes // volumes.GIB)


# -- volumes


def volume(
    ctx: Context,
    where: Backend,
    reference: Any,
    *,
    volume_type: str | None = None,
    availability_zone: str | None = None,
    bootable: bool = False,
    metadata: Mapping[str, str] | None = None,
    **names: Any,
) -> models.Volume:
    """Make a volume of an image that is there, and return its row as accepted.

    Raises InvalidInput when there is no such image, or it is a volume already, or somebody has it open; OverQuota,
    ServiceDisabled.
    """
    place = _Name.of(source(reference))
    name = str(place)
    image = _look(where.cluster.within(place.namespace), place.image)
    if image.watchers:
        raise errors.InvalidInput(f"image {name} is open: {', '.join(image.watchers)}")
    size = _gib(image.size_bytes)
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        services.refuse_closed(session, ctx.world, where.name)
        if _owners(session, [name], where):
            raise errors.InvalidInput(f"image {name} is a volume already")
        kind = types.for_new_volume(ctx, session, volume_type, may_encrypt=False)
        quotas.admit_volume(session, ctx.settings, ctx.project_id, kind, size)
        made = models.Volume(
            id=models.new_id(),
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            size=size,
            availability_zone=availability_zone or where.availability_zone,
            host=where.pool,
            namespace=place.namespace,
            volume_type=kind,
            bootable=bootable,
            metadata_rows=[models.VolumeMetadata(key=key, value=value) for key, value in (metadata or {}).items()],
            image_metadata_rows=[],
            attachments=[],
            group=None,
            **names,
        )
        owner = volumes.LIFECYCLE.start(made, "manage", ctx.settings.lease, ctx.request_id, image=place.image)
        session.add(made)
    volumes.LIFECYCLE.run(ctx.world, made.id, owner)
    return made


def _look(cluster: Cluster, name: str) -> Any:
    try:
        return cluster.info(name)
    except errors.ImageNotFound as error:
        raise errors.InvalidInput(f"there is no image {name}") from error


@volumes.LIFECYCLE.step("manage")
def _manage(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    cluster, most = world.cluster_of(volume), world.backend(volume.host).max_clone_depth
    cluster.rename(arguments["image"], volume.image)
    cluster.limit(volume.image, limits.of_image(world, volume))
    return {"clone_depth": cluster.depth(volume.image, most + 1)}


def _owners(session: Session, names: Sequence[str], where: Backend) -> dict[str, str | None]:
    """Which of these images are volumes: name → id. One that is just being taken over counts as well.

    The id is None for the image of a deleted volume, of which snapshots are left.
    """
    table = models.Volume
    ids = [_Name.of(name).image.removeprefix("volume-") for name in names]
    # Databases limit how many values a statement may carry.
    wanted = true() if len(ids) > MOST_IDS else or_(table.id.in_(ids), table.busy == 1)
    there = or_(table.deleted.is_(False), volumes.LINGERS)
    rows = session.execute(
        select(table.id, table.host, table.namespace, table.deleted, table.intent).where(
            there, or_(table.host == where.pool, table.busy == 1), wanted
        )
    )
    owners: dict[str, str | None] = {}
    for volume_id, host, namespace, deleted, noted in rows:
        intent = noted or {}
        # One that moves has an image in both places.
        places = [(host, namespace), (intent.get("host"), intent.get("namespace", ""))]
        places.append((intent.get("source"), intent.get("source_namespace", "")))
        for space in {space for pool, space in places if pool == where.pool}:
            owners[str(_Name(space, f"volume-{volume_id}"))] = None if deleted else volume_id
            if "image" in intent:
                owners[str(_Name(space, intent["image"]))] = volume_id
    return {name: owners[name] for name in names if name in owners}


def let_go(ctx: Context, volume: models.Volume) -> None:
    """Forget a volume and leave its image. Raises InvalidVolume unless it could be deleted and is not encrypted."""
    table = models.Volume
    attached = exists().where(models.Attachment.volume_id == table.id)
    frozen = exists().where(models.Snapshot.volume_id == table.id)
    with ctx.world.db.write() as session:
        volumes.lock(session, volume.id)
        volumes.refuse_source(session, volume.id)
        owner = volumes.LIFECYCLE.begin(
            session,
            volume.id,
            "unmanage",
            ctx.settings.lease,
            ctx.request_id,
            table.migration_status.is_(None),
            table.group_id.is_(None),
            table.encryption_key_id.is_(None),
            ~attached,
            ~frozen,
        )
    if owner is None:
        volumes.get(ctx, volume.id)
        raise errors.InvalidVolume(
            "Volume status must be available or error, and it must not be migrating, attached, encrypted, in a group "
            "or have snapshots, to be unmanaged."
        )
    volumes.LIFECYCLE.run(ctx.world, volume.id, owner)


@volumes.LIFECYCLE.step("unmanage")
def _unmanage(_world: World, _volume: models.Volume, _arguments: Mapping[str, Any]) -> None:
    """There is nothing to do in Ceph: that is the point."""


def names(where: Backend) -> list[str]:
    """The names of all images of a pool; those of its namespaces only if projects have such."""
    places = [where.cluster]
    if where.isolates:
        places += [where.cluster.within(namespace) for namespace in where.cluster.namespaces()]
    return [str(_Name(place.namespace, image)) for place in places for image in place.images("")]


def volume_candidates(ctx: Context, where: Backend, names: Sequence[str]) -> list[Candidate]:
    """These images of a pool, with what speaks against taking each over."""
    with ctx.world.db.read() as session:
        owners = _owners(session, names, where)
    found = []
    for name in names:
        place = _Name.of(name)
        try:
            image = where.cluster.within(place.namespace).info(place.image)
        except errors.ImageNotFound:
            continue  # It went while we looked.
        taken = "already managed" if owners.get(name) else "snapshots need it" if name in owners else None
        reason = taken or ("in use" if image.watchers else None)
        found.append(Candidate(name, _gib(image.size_bytes), reason, owners.get(name)))
    return found


# -- snapshots


def snapshot(
    ctx: Context,
    volume: models.Volume,
    reference: Any,
    *,
    metadata: Mapping[str, str] | None = None,
    **names: Any,
) -> models.Snapshot:
    """Make a snapshot of an RBD snapshot that a volume's image has.

    Raises InvalidInput, InvalidVolume while the image is on its way elsewhere, OverQuota, ServiceDisabled.
    """
    if volumes.is_leaving(volume):
        raise errors.InvalidVolume(f"volume {volume.id} is on its way to another pool")
    name = source(reference)
    there = {one.name: one.size_bytes for one in ctx.world.cluster_of(volume).snapshots(volume.image)}
    if name not in there:
        raise errors.InvalidInput(f"volume {volume.id} has no snapshot {name}")
    size = _gib(there[name] - encryption.header_bytes(volume))
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        current = volumes.lock(session, volume.id)
        services.refuse_closed(session, ctx.world, ctx.world.backend(current.host).name)
        known = session.scalars(select(models.Snapshot).where(models.Snapshot.volume_id == volume.id)).all()
        if any(name in (one.snap, (one.intent or {}).get("snap")) for one in known):
            raise errors.InvalidInput(f"snapshot {name} of volume {volume.id} is managed already")
        if name in volumes.backup_snaps(session, [volume.id]):
            raise errors.InvalidInput(f"snapshot {name} of volume {volume.id} is kept for its next backup")
        kind = session.get_one(models.VolumeType, current.volume_type_id)
        quotas.admit_snapshot(session, ctx.settings, ctx.project_id, kind, size)
        made = models.Snapshot(
            id=models.new_id(),
            volume_id=current.id,
            volume_type_id=current.volume_type_id,
            volume_size=size,
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            encryption_key_id=current.encryption_key_id,
            progress="0%",
            metadata_rows=[models.SnapshotMetadata(key=key, value=value) for key, value in (metadata or {}).items()],
            **names,
        )
        owner = snapshots.LIFECYCLE.start(made, "manage", ctx.settings.lease, ctx.request_id, snap=name)
        session.add(made)
    snapshots.LIFECYCLE.run(ctx.world, made.id, owner)
    return made


@snapshots.LIFECYCLE.step("manage")
def _manage_snapshot(world: World, snapshot: models.Snapshot, arguments: Mapping[str, Any]) -> dict[str, Any]:
    volume = snapshots.volume_of(world, snapshot)
    snapshots.ask_guests(world, volume.id)
    world.cluster_of(volume).rename_snapshot(volume.image, arguments["snap"], snapshot.snap)
    return {"progress": "100%"}


def let_go_snapshot(ctx: Context, snapshot: models.Snapshot) -> None:
    """Forget a snapshot and leave it in Ceph. Raises InvalidSnapshot, also for one that outlived its volume."""
    with ctx.world.db.write() as session:
        if snapshots.refuse_source(session, snapshot).deleted:
            raise errors.InvalidSnapshot(f"the volume of snapshot {snapshot.id} was deleted: nobody else could find it")
        owner = snapshots.LIFECYCLE.begin(
            session,
            snapshot.id,
            "unmanage",
            ctx.settings.lease,
            ctx.request_id,
            models.Snapshot.group_snapshot_id.is_(None),
        )
    if owner is None:
        snapshots.get(ctx, snapshot.id)
        raise errors.InvalidSnapshot("Snapshot status must be available or error and must not be part of a group.")
    snapshots.LIFECYCLE.run(ctx.world, snapshot.id, owner)


@snapshots.LIFECYCLE.step("unmanage")
def _unmanage_snapshot(_world: World, _snapshot: models.Snapshot, _arguments: Mapping[str, Any]) -> None:
    """There is nothing to do in Ceph: that is the point."""


def snapshot_candidates(ctx: Context, where: Backend) -> list[Candidate]:
    """The RBD snapshots of the volumes in a pool, with what speaks against taking each over."""
    with ctx.world.db.read() as session:
        table = models.Volume
        images = list(session.scalars(select(table).where(table.deleted.is_(False), table.host == where.pool)))
        owners = {
            (row.volume_id, row.snap): row.id
            for row in session.scalars(
                select(models.Snapshot).where(models.Snapshot.volume_id.in_([one.id for one in images]))
            )
        }
        kept = volumes.backup_snaps(session, [one.id for one in images])
    found = []
    for one in images:
        try:
            there = ctx.world.cluster_of(one).snapshots(one.image)
        except errors.ImageNotFound:
            continue
        for snap in there:
            owner = owners.get((one.id, snap.name))
            reason = "already managed" if owner else "kept for its next backup" if snap.name in kept else None
            found.append(
                Candidate(
                    snap.name,
                    _gib(snap.size_bytes - encryption.header_bytes(one)),
                    reason,
                    owner,
                    str(_Name(one.namespace, one.image)),
                )
            )
    return sorted(found, key=lambda candidate: candidate.name)
