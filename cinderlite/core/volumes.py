# SPDX-License-Identifier: Apache-2.0
"""Volumes: what may be done to them and what that means in Ceph."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import BindParameter, Select, bindparam, exists, func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.core import (
    actions,
    copies,
    encryption,
    holders,
    kept,
    limits,
    messages,
    own_clients,
    placement,
    pools,
    quotas,
    services,
    states,
    types,
    vault,
    whole,
)
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import clock, models

LOG = logging.getLogger(__name__)

GIB = encryption.GIB
#: Values of migration_status of a volume that is not on its way.
_AT_REST = ("deleting", "error", "success")

DELETABLE = frozenset({"available", "error", "error_restoring", "error_extending", "error_managing", "error_deleting"})

LIFECYCLE = states.Machine(
    models.Volume,
    #    verb      from                       through      then         on failure
    Move("create", frozenset({"new"}),        "creating",  "available", "error"),
    Move("fill",   frozenset({"new"}),        "creating",  "available", "error", long=True),
    Move("download", frozenset({"new"}),      "creating",  "available", "error", long=True),
    Move("manage", frozenset({"new"}),        "managing",  "available", "error_managing"),
    Move("unmanage", DELETABLE,               "unmanaging", GONE,      "error_unmanaging"),
    Move("extend", frozenset({"available"}),  "extending", RETURN,     "error_extending"),
    Move("revert", frozenset({"available"}),  "reverting", "available", "error", long=True),
    Move("retype", frozenset({"available", "in-use"}), "retyping", RETURN, RETURN),
    Move("retype_and_move", frozenset({"available"}), "retyping", RETURN, RETURN, long=True),
    Move("migrate", frozenset({"available"}), "maintenance", RETURN,  RETURN, long=True),
    Move("hand_over", frozenset({"awaiting-transfer"}), "maintenance", "available", "error", long=True),
    Move("mirror", frozenset({"in-use"}),     "maintenance", RETURN,  RETURN, long=True),
    Move("retype_and_mirror", frozenset({"in-use"}), "retyping", RETURN, RETURN, long=True),
    Move("upload", frozenset({"available"}),  "uploading", RETURN,      RETURN, long=True),
    Move("reimage", frozenset({"available", "error"}), "downloading", RETURN, "error", long=True),
    Move("delete", DELETABLE,                 "deleting",  GONE,        "error_deleting", refused=(errors.ImageBusy,)),
    Move("undelete", frozenset({"deleted"}),  "creating",  "available", RETURN),
    Move("hollow", frozenset({"deleted"}),    "deleted",   "outlived",  "outlived", patience=60.0),
    Move("purge",  frozenset({"deleted", "outlived"}), "deleted", GONE, RETURN, patience=60.0),
)  # fmt: skip

#: Verbs that take a volume to another pool, and those that take its image elsewhere.
_MOVES = frozenset({"migrate", "retype_and_move", "mirror", "retype_and_mirror"})
_LEAVING = _MOVES | {"hand_over"}
#: Whether a volume is not on its way to another pool.
AT_REST = or_(models.Volume.migration_status.is_(None), models.Volume.migration_status.in_(_AT_REST))

#: Whether a deleted volume still has an image under its name, or may have it.
LINGERS = sqlalchemy.and_(
    models.Volume.deleted.is_(True),
    or_(models.Volume.status == "outlived", models.Volume.busy == 1, models.Volume.purge_at.is_not(None)),
)

#: A volume whose image is being made.
BEING_MADE = sqlalchemy.and_(
    models.Volume.deleted.is_(False), models.Volume.status == "creating", models.Volume.busy == 1
)

#: What the API shows is loaded with the rows, never one by one.
SHOWN = (
    joinedload(models.Volume.volume_type),
    selectinload(models.Volume.metadata_rows),
    selectinload(models.Volume.image_metadata_rows),
    selectinload(models.Volume.attachments),
    selectinload(models.Volume.group).joinedload(models.Group.group_type),
)


def visible(ctx: Context, *, all_projects: bool = False, gone: bool = False) -> Select[models.Volume]:
    """The volumes that the caller may see, with `gone` deleted ones too; an administrator asks for all projects."""
    return _of_project(None if ctx.is_admin and all_projects else ctx.project_id, gone=gone)


def _of_project(project: str | BindParameter[str] | None, *, gone: bool) -> Select[models.Volume]:
    query = select(models.Volume)
    if not gone:
        query = query.where(models.Volume.deleted.is_(False))
    if project is not None:
        query = query.where(models.Volume.project_id == project)
    return query


def get(ctx: Context, volume_id: str) -> models.Volume:
    """The volume of that id, with all that is shown of it. Raises VolumeNotFound, also for another project's."""
    return _read(ctx, volume_id)


def bare(ctx: Context, volume_id: str, *, gone: bool = False) -> models.Volume:
    """The same with its own columns only: for what works on a volume and does not show it."""
    return _read(ctx, volume_id, shown=False, gone=gone)


def _read(ctx: Context, volume_id: str, **how: bool) -> models.Volume:
    found = whole.read(ctx.world, volume_id, None if ctx.is_admin else ctx.project_id, **how)
    if found is None:
        raise errors.VolumeNotFound(volume_id)
    return found


@functools.cache
def _one(*, everybody: bool, gone: bool) -> Select[models.Volume]:
    query = _of_project(None if everybody else bindparam("project"), gone=gone)
    return query.where(models.Volume.id == bindparam("volume")).options(*SHOWN)


def find(ctx: Context, session: Session, volume_id: str, *, gone: bool = False) -> models.Volume:
    """As `get`, in the transaction that changes it; with `gone` also a deleted one, of which snapshots are left.

    Raises VolumeNotFound.
    """
    named = {"volume": volume_id, "project": ctx.project_id}
    found = session.scalars(_one(everybody=ctx.is_admin, gone=gone), named).one_or_none()
    if found is None:
        raise errors.VolumeNotFound(volume_id)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """What a new volume takes over from its source; `size` in GiB is the least it may have."""

    size: int
    host: str | None = None
    availability_zone: str | None = None
    volume_type_id: str | None = None
    bootable: bool = False
    image_metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    encryption_key_id: str | None = None
    #: "create" if the image is made at once, "fill" if data are moved for it, "download" if they come from an image.
    verb: str = "create"
    #: The same for a volume that is encrypted though its source is not; None if that cannot be.
    verb_to_encrypt: str | None = None
    #: Further columns of the new row, and what the step must know.
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Something that volumes are made from.

    `origin(ctx, session, id)` looks it up and refuses what cannot be (it runs before anything is begun and again in
    the transaction that accepts); where looking takes more than the database, it gets what was found instead of the
    id. `fill(world, volume, intent)` is the idempotent step that makes the image.
    """

    origin: Callable[[Context, Session, Any], Origin]
    fill: Callable[[World, models.Volume, Mapping[str, Any]], Mapping[str, Any] | None]
    #: Whether an encrypted volume that is made from it gets a secret of its own.
    seals: bool = False


#: Back ends that do not answer, by name, with what they say.
Dead = dict[str, errors.Unavailable]
#: The key of the request's body → the source; whoever can fill a volume registers here.
SOURCES: dict[str, Source] = {}


def create(
    ctx: Context,
    *,
    size: int | None = None,
    source: tuple[str, Any] | None = None,
    name: str | None = None,
    description: str | None = None,
    volume_type: str | None = None,
    availability_zone: str | None = None,
    metadata: Mapping[str, str] | None = None,
    hints: Mapping[str, Any] | None = None,
    group_id: str | None = None,
    may_share: bool = True,
    **columns: Any,
) -> models.Volume:
    """Create a volume of `size` GiB, empty or from a `source` (a key of SOURCES and what that takes); the row.

    `may_share` says whether it may be one for several servers; `columns` are further columns of the row that callers in
    `core` set. Raises OverQuota, VolumeTypeNotFound, Forbidden, GroupNotFound, InvalidInput, what the source raises,
    and CephUnavailable when the cluster does not answer; then nothing was begun. A failure after that shows as status
    `error`.
    """
    wanted = Wanted(
        size, source, volume_type, availability_zone, placement.hints(ctx, hints or {}), group_id, may_share
    )
    # Never inside a transaction: Ceph takes its time to answer, most of all when it is dead.
    pools.learn(ctx.world)
    dead = _dead(ctx, wanted)
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        volume, owner = begin(
            ctx, session, wanted, dead=dead, name=name, description=description, metadata=metadata, **columns
        )
    LIFECYCLE.run(ctx.world, volume, owner)
    return volume


def begin(
    ctx: Context,
    session: Session,
    wanted: Wanted,
    *,
    dead: Dead | None = None,
    metadata: Mapping[str, str] | None = None,
    **columns: Any,
) -> tuple[models.Volume, str]:
    """Admit a volume and put its row into the database, on its way; the row and the lease. Call under `quotas.lock`."""
    plan = _plan(ctx, session, wanted, dead or {})
    quotas.admit_volume(session, ctx.settings, ctx.project_id, plan.kind, plan.size)
    origin, source = plan.origin, wanted.source
    volume = models.Volume(
        id=models.new_id(),
        project_id=ctx.project_id,
        user_id=ctx.user_id,
        size=plan.size,
        availability_zone=plan.zone,
        host=plan.backend.pool,
        namespace=plan.backend.namespace_for(ctx.project_id),
        volume_type=plan.kind,
        multiattach=types.is_multiattach(plan.kind),
        bootable=origin.bootable,
        metadata_rows=[models.VolumeMetadata(key=key, value=value) for key, value in (metadata or {}).items()],
        image_metadata_rows=[
            models.ImageMetadata(key=key, value=value) for key, value in origin.image_metadata.items()
        ],
        attachments=[],
        group_id=wanted.group_id,
        group=plan.group,
        **(dict(origin.columns) | columns),
    )
    arguments: dict[str, Any] = plan.encryption | ({"unplaced": plan.unfit} if plan.unfit else {})
    if source is not None:
        arguments["source"] = {"kind": source[0], "id": source[1], **origin.arguments}
    owner = LIFECYCLE.start(volume, origin.verb, ctx.settings.lease, ctx.request_id, **arguments)
    session.add(volume)
    if plan.unfit is None:
        pools.take(ctx.world, plan.backend, plan.size)
    return volume, owner


def _dead(ctx: Context, wanted: Wanted) -> Dead:
    """The back ends that would be chosen but do not answer, with what they say. Raises that if there is no other."""
    if len(ctx.world.backends) == 1:
        next(iter(ctx.world.backends.values())).cluster.check()
        return {}
    dead: Dead = {}
    while True:
        with ctx.world.db.read() as session:
            plan = _plan(ctx, session, wanted, dead)
        if plan.unfit is not None:
            return dead
        try:
            plan.backend.cluster.check()
        except errors.Unavailable as error:
            dead[plan.backend.name] = error
        else:
            return dead


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a new volume; the source is a key of SOURCES and an id."""

    size: int | None
    source: tuple[str, Any] | None
    volume_type: str | None
    zone: str | None
    hints: placement.Hints = placement.NO_HINTS
    group_id: str | None = None
    may_share: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    size: int
    origin: Origin
    kind: models.VolumeType
    zone: str
    backend: Backend
    #: Why no back end can take it: then the volume fails as soon as it is accepted.
    unfit: str | None
    group: models.Group | None
    #: What the intent says of its encryption.
    encryption: dict[str, Any]


def _plan(ctx: Context, session: Session, wanted: Wanted, dead: Dead) -> _Plan:
    """What will be made of a request, from what the database says now."""
    origin = Origin(0)
    if wanted.source is not None:
        key, source_id = wanted.source
        origin = SOURCES[key].origin(ctx, session, source_id)
    size = wanted.size if wanted.size is not None else origin.size
    if size < 1:
        raise errors.InvalidInput(
            f"Invalid volume size provided for create request: {wanted.size} (size must be an integer)"
        )
    if size < origin.size:
        raise errors.InvalidInput(
            f"Volume size '{size}'GB cannot be smaller than the size of its source, {origin.size}GB."
        )
    kind = types.for_new_volume(ctx, session, wanted.volume_type or origin.volume_type_id)
    if types.is_multiattach(kind) and not wanted.may_share:
        raise errors.Forbidden(types.SHARING)
    can_be = wanted.source is None or origin.verb_to_encrypt is not None
    encrypted = encryption.plan(ctx, session, kind, origin.encryption_key_id, origin.volume_type_id, anew=can_be)
    if encrypted and origin.encryption_key_id is None:
        origin = dataclasses.replace(origin, verb=origin.verb_to_encrypt or origin.verb)
    group = _group(ctx, session, wanted, kind)
    near = origin.host or (group.host if group else None)
    backend, zone, unfit = placement.choose(
        ctx,
        session,
        kind,
        size,
        zone=wanted.zone or (origin.availability_zone if near is None else None),
        hints=wanted.hints,
        near=near,
        dead=dead,
    )
    if origin.host is not None and unfit is not None and not placement.fits(backend, kind, zone):
        raise errors.InvalidInput(
            "A volume must be in the availability zone of the snapshot or volume that it is made from, and of a type "
            "that can be on the same back end."
        )
    if group is not None and backend.pool != group.host:
        raise errors.InvalidInput(f"The source is on {backend.pool}, and group {group.id} is on {group.host}.")
    return _Plan(size, origin, kind, zone, backend, unfit, group, encrypted)


def _group(ctx: Context, session: Session, wanted: Wanted, kind: models.VolumeType) -> models.Group | None:
    """The group that a new volume is to be in, which cannot end before the transaction does.

    Raises GroupNotFound, InvalidGroup for one that is on its way, InvalidInput when it takes no volumes of that type.
    """
    if wanted.group_id is None:
        return None
    table = models.Group
    query = select(table).where(table.id == wanted.group_id).options(joinedload(table.group_type))
    query = query.options(selectinload(table.volume_type_rows)).with_for_update(read=True, of=table)
    group = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    if group is None or not (ctx.is_admin or group.project_id == ctx.project_id):
        raise errors.GroupNotFound(wanted.group_id)
    if group.status in ("deleting", "error_deleting"):
        raise errors.InvalidGroup(f"group {group.id} takes no volumes in status {group.status}")
    if wanted.volume_type is None:
        raise errors.InvalidInput("volume_type must be given for a volume in a group.")
    if kind.id not in {row.volume_type_id for row in group.volume_type_rows}:
        raise errors.InvalidInput(f"group {group.id} takes no volumes of type {kind.name}")
    return group


@LIFECYCLE.step("create")
@LIFECYCLE.step("fill")
@LIFECYCLE.step("download")
def _create(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if "unplaced" in arguments:
        raise errors.NoBackend(arguments["unplaced"])
    source, encrypted = arguments.get("source"), arguments.get("encryption")
    own = source is not None and SOURCES[source["kind"]].seals
    if encrypted is not None:
        encryption.give_key(world, volume, None if own else encrypted["like"])
    more = None
    if source is not None:
        with states.while_busy(arguments):
            more = SOURCES[source["kind"]].fill(world, volume, source)
        if encrypted is not None and own:
            encryption.seal(world, volume, encrypted["like"])
    else:
        _create_empty(world, volume)
    # Last: they would slow down our own writing, too.
    wanted = limits.of_image(world, volume)
    if wanted:
        world.cluster_of(volume).limit(volume.image, wanted)
    return more


def _create_empty(world: World, volume: models.Volume) -> None:
    world.cluster_of(volume).create(volume.image, encryption.image_bytes(volume))
    header = encryption.header(world, volume)
    if header is not None:
        world.cluster_of(volume).write_head(volume.image, header[0])


def update(ctx: Context, volume: models.Volume, **changes: Any) -> models.Volume:
    """Change name, description or metadata (which replaces all) and return the new row. Raises InvalidVolume."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, volume.id)
        if current.status == "maintenance":
            raise errors.InvalidVolume("The volume cannot be changed during its maintenance.")
        if "metadata" in changes:
            write_metadata(
                session, current.metadata_rows, models.VolumeMetadata, changes.pop("metadata") or {}, replace=True
            )
        for key, value in changes.items():
            setattr(current, key, value)
        current.updated_at = models.utcnow()
    return current


def lock(session: Session, volume_id: str, *, gone: bool = False) -> models.Volume:
    """The volume's row, which nobody else changes before this transaction ends. Raises VolumeNotFound.

    Whoever makes something that a volume must not be deleted under (a snapshot) locks it first, and so does a delete.
    With `gone` it may have been deleted already.
    """
    query = select(models.Volume).where(models.Volume.id == volume_id)
    if not gone:
        query = query.where(models.Volume.deleted.is_(False))
    found = session.scalars(query.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise errors.VolumeNotFound(volume_id)
    return found


def hold(session: Session, volume_id: str) -> None:
    """Let nobody change a volume's row before the transaction ends; others may hold it too. It need not be there.

    Whoever makes a volume from it, or from a snapshot of it, holds it, so that `refuse_source` sees that.
    """
    table = models.Volume
    session.execute(select(table.id).where(table.id == volume_id).with_for_update(read=True)).first()


def refuse_source(session: Session, volume_id: str) -> None:
    """Raise InvalidVolume while something is being made from a volume or from a snapshot of it. Call under `lock`.

    It may have been broken off. Who goes on with it must find the data where they were, and removes what a copy left.
    """
    table = models.Volume
    its_own = select(models.Snapshot.id).where(models.Snapshot.volume_id == volume_id)
    made = or_(table.source_volid == volume_id, table.snapshot_id.in_(its_own))
    if session.scalar(select(table.id).where(BEING_MADE, made).limit(1)) is not None:
        raise errors.InvalidVolume(f"another volume is being made from volume {volume_id}")


def delete(ctx: Context, volume: models.Volume, *, cascade: bool = False, force: bool = False) -> None:
    """Delete a volume: its image goes to the trash now and is removed from there in the background.

    With `cascade` its snapshots go too, with `force` its status does not matter; where snapshots outlive volumes they
    stay without `cascade`, with what of the image they need. Raises InvalidVolume when its state does not allow it,
    while a volume is being made from it, or when a client that is not ours has the image open, InvalidInput on a frozen
    back end.
    """
    ctx.world.cluster_of(volume).check()
    attached = exists().where(models.Attachment.volume_id == models.Volume.id)
    owner = None
    with ctx.world.db.write() as session:
        current = lock(session, volume.id)
        services.refuse_frozen(session, current.host)
        refuse_source(session, current.id)
        snapshots = list(session.scalars(select(models.Snapshot).where(models.Snapshot.volume_id == volume.id)))
        stay = not cascade and stay_behind(ctx, snapshots)
        if stay or (all(_goes_along(ctx, snapshot, current) for snapshot in snapshots) and (cascade or not snapshots)):
            owner = LIFECYCLE.begin(
                session,
                volume.id,
                "delete",
                ctx.settings.lease,
                ctx.request_id,
                AT_REST,
                ~attached,
                models.Volume.group_id.is_(None),
                sources=frozenset({current.status}) if force else None,
                **held(session, volume.id, snapshots, stay=stay),
            )
        if owner is not None and not stay:
            for snapshot in snapshots:
                snapshot.previous_status, snapshot.status = snapshot.status, "deleting"
    if owner is None:
        get(ctx, volume.id)  # Gone meanwhile is a 404, not a wrong state.
        raise errors.InvalidVolume(
            "Volume status must be available or error or error_restoring or error_extending or error_managing and "
            "must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be "
            "disassociated from snapshots after volume transfer."
        )
    outcome = LIFECYCLE.run(ctx.world, volume.id, owner)
    if isinstance(outcome.error, errors.ImageBusy):
        raise errors.InvalidVolume(outcome.error.message)


def delete_with_server(session: Session, volume_id: str, request_id: str) -> None:
    """Have a volume deleted that was to go with its server, in the transaction that takes it from that one.

    Whoever reconciles does it. Raises InvalidVolume if it is still held, or has snapshots, or cannot be deleted now for
    another reason, InvalidInput on a frozen back end.
    """
    volume = lock(session, volume_id)
    services.refuse_frozen(session, volume.host)
    refuse_source(session, volume_id)
    unused = (
        ~exists().where(models.Attachment.volume_id == models.Volume.id),
        ~exists().where(models.Snapshot.volume_id == models.Volume.id),
        models.Volume.group_id.is_(None),
    )
    details = held(session, volume_id, (), stay=False)
    if LIFECYCLE.begin(session, volume_id, "delete", 0.0, request_id, AT_REST, *unused, **details) is None:
        raise errors.InvalidVolume(
            f"volume {volume_id} is used elsewhere, has snapshots, or is in status {volume.status}"
        )


def stay_behind(ctx: Context, snapshots: Sequence[models.Snapshot]) -> bool:
    """Whether all the snapshots of a volume can be left when it is deleted: there are some, at rest, and it may be."""
    at_rest = ("available", "error", "error_deleting")
    allowed = ctx.settings.snapshots_outlive and bool(snapshots)
    return allowed and all(not snapshot.busy and snapshot.status in at_rest for snapshot in snapshots)


def held(session: Session, volume_id: str, snapshots: Sequence[models.Snapshot], *, stay: bool) -> dict[str, Any]:
    """What the intent of a deletion says of the snapshots in Ceph that go with it, and whether others stay."""
    of_backups = backup_snaps(session, [volume_id])
    if stay:
        return {"snaps": of_backups, "outlived": True}
    return {"snaps": [*(snapshot.snap for snapshot in snapshots), *of_backups]}


def _goes_along(ctx: Context, snapshot: models.Snapshot, volume: models.Volume) -> bool:
    """Whether a snapshot is deleted with its volume; not another project's, which a transfer left behind."""
    at_rest = not snapshot.busy and snapshot.status in ("available", "error") and snapshot.group_snapshot_id is None
    return at_rest and (ctx.is_admin or snapshot.project_id == volume.project_id)


def refuse_work_beside(session: Session, volume_id: str) -> None:
    """Raise InvalidVolume while something is under way on a volume's snapshots or backups. Call under `lock`.

    It looks for the image where that is now. What is begun later waits, see `wait_for_move`.
    """
    snapshot, backup = models.Snapshot, models.Backup
    at_work = or_(snapshot.busy == 1, snapshot.status.in_(("creating", "deleting", "backing-up")))
    of_snapshots = select(snapshot.id).where(snapshot.volume_id == volume_id, at_work).limit(1)
    of_backups = select(backup.id).where(backup.volume_id == volume_id, backup.status.in_(("creating", "deleting")))
    found = session.scalar(of_snapshots) or session.scalar(of_backups.limit(1))
    if found is not None:
        raise errors.InvalidVolume(f"something is under way on {found}, a snapshot or backup of volume {volume_id}")


def is_leaving(volume: models.Volume) -> bool:
    """Whether a volume's image is on its way to another pool or namespace, and for now under neither name."""
    return bool(volume.busy) and volume.intent is not None and volume.intent["verb"] in _LEAVING


def wait_for_move(volume: models.Volume) -> None:
    """Raise AtWork, so that a step is tried again, while a volume's image is on its way elsewhere.

    What is not where it was would be taken for removed.
    """
    if is_leaving(volume):
        raise errors.AtWork(volume.id)


def end_transfers(session: Session, volume_id: str) -> None:
    """Close every open offer of a volume, so that no key opens anything any more."""
    table = models.Transfer
    session.execute(
        sqlalchemy.update(table)
        .where(table.volume_id == volume_id, table.deleted.is_(False))
        .values(deleted=True, deleted_at=models.utcnow())
    )


def backup_snaps(session: Session, volume_ids: Sequence[str]) -> list[str]:
    """The snapshots that backups may have left on the volumes' images for the next increment."""
    made = select(models.Backup.id).where(models.Backup.volume_id.in_(volume_ids), models.Backup.snapshot_id.is_(None))
    return [vault.snap_of(backup_id) for backup_id in session.scalars(made)]


@LIFECYCLE.step("delete")
def _delete(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    keep, outlived = int(world.settings.retention), bool(arguments.get("outlived"))
    image_id = _unused(world, volume) if outlived else _to_trash(world, volume, keep, arguments)
    if image_id is None:
        encryption.forget_key(world, volume)
        return {}
    if not outlived:
        pools.give_back(world, world.backend(volume.host), volume.size)
    if keep:
        remembered = {"image_id": image_id, "snaps": arguments.get("snaps", []), "named": outlived}
        return {"purge_at": clock.now() + keep, "kept": remembered}
    return {"followed_by": {**arguments, "verb": "hollow" if outlived else "purge", "image_id": image_id}}


def _to_trash(world: World, volume: models.Volume, keep: int, arguments: Mapping[str, Any]) -> str | None:
    cluster, ours = world.cluster_of(volume), holders.ours(world, volume.id)
    try:
        return cluster.trash(volume.image, ours, keep_seconds=keep)
    except errors.ImageBusy:
        # Maybe by a process of the service that ended, or was cut off, in the middle of something.
        ours |= own_clients.addresses(world)
    try:
        return cluster.trash(volume.image, ours, keep_seconds=keep)
    except errors.ImageBusy:
        if set(cluster.info(volume.image).watchers) - ours:
            raise
        # One of ours has its lock, and gives it to who asks for it; nobody is to be refused for that.
        with states.while_busy(arguments):
            raise


def _unused(world: World, volume: models.Volume) -> str | None:
    """The id of an image that is to stay where it is, None if it is not there. Raises ImageBusy if somebody has it.

    librbd clones from no image in the trash, so one whose snapshots stay keeps its name, which no other ever has.
    """
    try:
        image_id = world.cluster_of(volume).info(volume.image).id
        others = set(holders.strangers(world, volume)) - own_clients.addresses(world)
    except errors.ImageNotFound:
        return None
    if others:
        holders.doubt(world, volume)
        raise errors.ImageBusy(volume.image, ", ".join(sorted(others)))
    return image_id


@LIFECYCLE.step("hollow")
def _hollow(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give back what the image of a deleted volume has beyond its snapshots; not for a volume that may come back."""
    cluster = world.cluster_of(volume)
    try:
        for snap in arguments["snaps"]:
            cluster.remove_snapshot(volume.image, snap)
        with cluster.opened(volume.image, write=True) as image:
            image.resize(0)
    except errors.ImageNotFound:
        LOG.warning("%s, of which snapshots are left, is not there any more", volume.image)
    except errors.CephError as error:
        raise errors.CephUnavailable(error.message) from error
    return {"kept": {"image_id": arguments["image_id"], "named": True}}


@LIFECYCLE.step("purge")
def _purge(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> None:
    encryption.forget_key(world, volume)  # First: what is left of the image for as long as clones need it is noise.
    image_id = arguments["image_id"]
    try:
        if arguments.get("named"):
            image_id = _to_trash(world, volume, 0, arguments)
        gone = image_id is None or world.cluster_of(volume).purge(image_id, arguments.get("snaps") or ())
    except errors.CephError as error:
        # Whatever it is (a clone that needs it, a dead client's watch): nobody else will ever remove this image.
        raise errors.CephUnavailable(error.message) from error
    if not gone:
        raise errors.CephUnavailable(f"image {image_id} cannot be removed from the trash yet")


@LIFECYCLE.settled
def _settled(
    session: Session, volume: models.Volume, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    if error is not None:
        placed = not isinstance(error, errors.NoBackend)
        messages.leave(
            session,
            volume,
            intent["verb"] if placed else messages.SCHEDULE,
            error.message,
            request_id=intent["request_id"],
            detail=messages.UNKNOWN_ERROR if placed else messages.NO_BACKEND,
        )
    if intent["verb"] == "extend":
        actions.end(session, intent["request_id"], error.message if error else None)
    if intent["verb"] in _MOVES and error is not None:
        volume.migration_status = "error"
    if intent["verb"] == "undelete":
        volume.deleted = error is not None
        if error is None and intent["before"] not in ("available", "error_deleting"):
            volume.status = "error"
    if volume.deleted:
        end_transfers(session, volume.id)
        session.execute(sqlalchemy.delete(models.Flatten).where(models.Flatten.id == volume.id))
    if intent["verb"] in ("retype", "retype_and_move") and error is None:
        taken_along = sqlalchemy.update(models.Snapshot).where(models.Snapshot.volume_id == volume.id)
        session.execute(taken_along.values(volume_type_id=volume.volume_type_id))
    if intent["verb"] == "delete" and volume.purge_at is not None:
        kept.remember(session, volume)
    if intent["verb"] in ("delete", "revert", "undelete"):
        _settle_snapshots(session, volume.id, gone=volume.deleted)


def _settle_snapshots(session: Session, volume_id: str, *, gone: bool) -> None:
    """What a verb of the volume had taken along of its snapshots goes with it, or is again what it was."""
    table = models.Snapshot
    # One of a group's snapshot that is `deleting` goes with that.
    taken = or_(table.status == "restoring", (table.status == "deleting") & table.group_snapshot_id.is_(None))
    for snapshot in session.scalars(select(table).where(table.volume_id == volume_id, taken, table.busy == 0)):
        if gone:
            session.delete(snapshot)
        else:
            snapshot.status = snapshot.previous_status or "available"


# -- bigger, back, by hand


def extend(ctx: Context, volume: models.Volume, size: int, *, in_use: bool) -> None:
    """Make a volume `size` GiB big, one in use only with `in_use`; its servers see that at once.

    Raises InvalidVolume, InvalidInput, OverQuota.
    """
    ctx.world.cluster_of(volume).check()
    sources = frozenset({"available", "in-use"} if in_use else {"available"})
    with ctx.world.db.write() as session:
        quotas.lock(session, volume.project_id)
        current = lock(session, volume.id)
        if current.status not in sources or current.busy:
            raise errors.InvalidVolume(
                f"Volume {volume.id} status must be {' or '.join(sorted(sources))} to extend, "
                f"but current status is: {current.status}."
            )
        if size <= current.size:
            raise errors.InvalidInput(
                f"New size for extend must be greater than current size. (current: {current.size}, extended: {size})."
            )
        kind = session.get_one(models.VolumeType, current.volume_type_id)
        quotas.admit_extend(session, ctx.settings, current.project_id, kind, (current.size, size))
        owner = LIFECYCLE.begin(
            session, volume.id, "extend", ctx.settings.lease, ctx.request_id, sources=sources, size=size
        )
        actions.begin(session, ctx, actions.EXTEND, session.execute(_plugged_into(volume.id)))
    if owner is not None:
        LIFECYCLE.run(ctx.world, volume.id, owner)
        ctx.world.wake.set()  # For the limits that depend on the size.


def _plugged_into(volume_id: str) -> Select[Any, Any]:
    """The servers, with their hosts, that have the volume from us."""
    table = models.Attachment
    here = table.volume_id == volume_id, table.managed, table.status == "attached", table.server_id.is_not(None)
    return select(table.server_id, table.host).where(*here)


@LIFECYCLE.step("extend")
def _extend(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    size = arguments["size"] * GIB
    world.cluster_of(volume).grow(volume.image, encryption.image_bytes(volume, arguments["size"]))
    with world.db.read() as session:
        servers = list(session.scalars(_plugged_into(volume.id)))
    for server_id in servers:
        # A guest that is gone sees the new size when it starts again.
        with contextlib.suppress(errors.GuestGone, errors.ServerNotFound):
            world.guests.find(server_id, fresh=False).resize(volume.id, size)
    return {"size": arguments["size"], **(limits.due() if limits.of_image(world, volume) else {})}


def revert(ctx: Context, volume: models.Volume, snapshot_id: str) -> None:
    """Take a volume back to its newest snapshot.

    Raises InvalidSnapshot (not the newest, another size), Conflict when one of the two is not available.
    """
    ctx.world.cluster_of(volume).check()
    owner = None
    with ctx.world.db.write() as session:
        current = lock(session, volume.id)
        newest = session.scalars(
            select(models.Snapshot)
            .where(models.Snapshot.volume_id == volume.id)
            .order_by(models.Snapshot.created_at.desc(), models.Snapshot.id.desc())
            .limit(1)
        ).one_or_none()
        # One that stayed with another project in a transfer is not the volume's owner's to go back to.
        if newest is None or newest.id != snapshot_id or newest.project_id != current.project_id:
            raise errors.InvalidInput(f"Specified snapshot {snapshot_id} is not the latest one of volume {volume.id}.")
        if newest.volume_size != current.size:
            raise errors.InvalidInput("Can't revert a volume whose size has changed since its latest snapshot.")
        if newest.status == "available" and not newest.busy:
            owner = LIFECYCLE.begin(
                session,
                volume.id,
                "revert",
                ctx.settings.lease,
                ctx.request_id,
                snap=newest.held_as,
                copy=newest.group_snap is not None,
            )
        if owner is not None:
            newest.previous_status, newest.status = newest.status, "restoring"
    if owner is None:
        raise errors.Conflict("The volume and its snapshot must be available to revert.")
    LIFECYCLE.run(ctx.world, volume.id, owner)


@LIFECYCLE.step("revert")
def _revert(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> None:
    cluster = world.cluster_of(volume)
    if arguments.get("copy"):
        copies.write_over(cluster, volume.image, cluster, volume.image, arguments["snap"])
    else:
        holders.leave_off(world, volume.id)  # librbd refuses it while another client can take the lock.
        cluster.roll_back(volume.image, arguments["snap"])


def reset_status(ctx: Context, volume: models.Volume, **changes: str) -> None:
    """Set status, attach_status or migration_status by hand.

    Raises InvalidVolume while an operation is under way (its end would be lost) and for `in-use` without an attachment.
    """
    with ctx.world.db.write() as session:
        current = lock(session, volume.id)
        if current.busy:
            raise errors.InvalidVolume(f"an operation on it is under way ({current.status})")
        held = list(session.scalars(select(models.Attachment).where(models.Attachment.volume_id == volume.id)))
        if changes.get("status") == "in-use" and not held:
            raise errors.InvalidVolume("a volume without attachments is not in-use")
        if changes.get("attach_status") == "detached":
            _forget_attachments(session, held)
        if "status" in changes:
            current.status = changes["status"]
        if "migration_status" in changes:
            wanted = changes["migration_status"]
            current.migration_status = None if wanted == "none" else wanted
        current.updated_at = models.utcnow()


def _forget_attachments(session: Session, held: Sequence[models.Attachment]) -> None:
    for attachment in held:
        if attachment.managed:
            raise errors.InvalidVolume(
                f"it is plugged into server {attachment.server_id}; detach it there, or end that server"
            )
        session.delete(attachment)


# -- metadata


def metadata(volume: models.Volume) -> dict[str, str]:
    """The user's metadata of a volume."""
    return {row.key: row.value for row in volume.metadata_rows}


def set_metadata(
    ctx: Context,
    volume: models.Volume,
    values: Mapping[str, str],
    *,
    replace: bool,
    guard: Callable[[Mapping[str, str]], bool] | None = None,
) -> dict[str, str]:
    """Merge or replace metadata and return all of it.

    `guard` is shown the present metadata in the transaction that changes it; raises PreconditionFailed if it says no.
    """
    with ctx.world.db.write() as session:
        current = find(ctx, session, volume.id)
        refuse_maintenance(current)
        if guard is not None and not guard(metadata(current)):
            raise errors.PreconditionFailed
        write_metadata(session, current.metadata_rows, models.VolumeMetadata, values, replace=replace)
        current.updated_at = models.utcnow()
    return metadata(current)


def delete_metadata(ctx: Context, volume: models.Volume, key: str) -> None:
    """Remove one key. Raises VolumeMetadataNotFound."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, volume.id)
        refuse_maintenance(current)
        row = next((row for row in current.metadata_rows if row.key == key), None)
        if row is None:
            raise errors.VolumeMetadataNotFound(volume.id, key)
        current.metadata_rows.remove(row)
        current.updated_at = models.utcnow()


def write_metadata(
    session: Session, rows: list[Any], kind: type[Any], values: Mapping[str, str], *, replace: bool
) -> None:
    """Merge `values` into the rows of some metadata, or put them in their place."""
    present = {row.key: row for row in rows}
    for key, value in values.items():
        if key in present:
            present[key].value = value
        else:
            rows.append(kind(key=key, value=value))
    if replace:
        for key in present.keys() - values.keys():
            rows.remove(present[key])
    session.flush()


def refuse_maintenance(volume: models.Volume) -> None:
    """Raise InvalidVolume while what is known of a volume must not change."""
    if volume.status in ("maintenance", "uploading"):
        raise errors.InvalidVolume(f"Volume {volume.id} is in status {volume.status}; its metadata cannot be changed.")


# -- sums


def totals(session: Session, query: Select[models.Volume]) -> tuple[int, int]:
    """Number and GiB of the volumes that `query` selects."""
    chosen = query.with_only_columns(models.Volume.id, models.Volume.size).order_by(None).subquery()
    count, size = session.execute(
        select(func.count(), func.coalesce(func.sum(chosen.c.size), 0)).select_from(chosen)
    ).one()
    return int(count), int(size)


def summary(ctx: Context, *, all_projects: bool) -> tuple[int, int, dict[str, list[str]]]:
    """Number of volumes, their GiB, and every value of every metadata key."""
    query = visible(ctx, all_projects=all_projects)
    with ctx.world.db.read() as session:
        count, size = totals(session, query)
        pairs = session.execute(
            select(models.VolumeMetadata.key, models.VolumeMetadata.value)
            .where(models.VolumeMetadata.volume_id.in_(query.with_only_columns(models.Volume.id)))
            .distinct()
            .order_by(models.VolumeMetadata.key, models.VolumeMetadata.value)
        ).all()
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return count, size, values
