# SPDX-License-Identifier: Apache-2.0
"""Volumes: what may be done to them and what that means in Ceph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.core import messages, placement, quotas, states, types
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import models

GIB = 1024**3

DELETABLE = frozenset({"available", "error", "error_restoring", "error_extending", "error_managing", "error_deleting"})

LIFECYCLE = states.Machine(
    models.Volume,
    #    verb      from                       through      then         on failure
    Move("create", frozenset({"new"}),        "creating",  "available", "error"),
    Move("delete", DELETABLE,                 "deleting",  GONE,        "error_deleting", refused=(errors.ImageBusy,)),
    Move("purge",  frozenset({"deleted"}),    "deleted",   GONE,        RETURN, patience=60.0),
)  # fmt: skip

#: What the API shows is loaded with the rows, never one by one.
SHOWN = (
    joinedload(models.Volume.volume_type),
    selectinload(models.Volume.metadata_rows),
    selectinload(models.Volume.image_metadata_rows),
    selectinload(models.Volume.attachments),
)


def visible(ctx: Context, *, all_projects: bool = False) -> Select[models.Volume]:
    """The volumes that the caller may see; an administrator asks for all projects explicitly."""
    query = select(models.Volume).where(models.Volume.deleted.is_(False))
    if not (ctx.is_admin and all_projects):
        query = query.where(models.Volume.project_id == ctx.project_id)
    return query


def get(ctx: Context, volume_id: str) -> models.Volume:
    """The volume of that id, with all that is shown of it. Raises VolumeNotFound, also for another project's."""
    with ctx.world.db.read() as session:
        return _get(ctx, session, volume_id)


def _get(ctx: Context, session: Session, volume_id: str) -> models.Volume:
    query = visible(ctx, all_projects=True).where(models.Volume.id == volume_id).options(*SHOWN)
    found = session.scalars(query).one_or_none()
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
    #: Further columns of the new row, and what the step must know.
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Something that volumes are made from.

    `origin(ctx, session, id)` looks it up and refuses what cannot be (it runs before anything is begun and again in
    the transaction that accepts); `fill(world, volume, intent)` is the idempotent step that makes the image. `verb`
    is "create" if that is quick and "fill" if data are moved.
    """

    origin: Callable[[Context, Session, str], Origin]
    fill: Callable[[World, models.Volume, Mapping[str, Any]], Mapping[str, Any] | None]
    verb: str = "create"


#: The key of the request's body → the source; whoever can fill a volume registers here.
SOURCES: dict[str, Source] = {}


def create(
    ctx: Context,
    *,
    size: int | None = None,
    source: tuple[str, str] | None = None,
    name: str | None = None,
    description: str | None = None,
    volume_type: str | None = None,
    availability_zone: str | None = None,
    metadata: Mapping[str, str] | None = None,
    hints: Mapping[str, Any] | None = None,
    **columns: Any,
) -> models.Volume:
    """Create a volume of `size` GiB, empty or from a `source` (a key of SOURCES and an id); the row as accepted.

    `columns` are further columns of the row that callers in `core` set, such as group_id. Raises OverQuota,
    VolumeTypeNotFound, InvalidInput, what the source raises, and CephUnavailable when the cluster does not answer;
    then nothing was begun. A failure after that shows as status `error`.
    """
    wanted = _Wanted(size, source, volume_type, availability_zone, dict(hints or {}))
    with ctx.world.db.read() as session:
        backend = _plan(ctx, session, wanted).backend
    # Never inside a transaction: a dead cluster takes its time to say so.
    backend.cluster.check()
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        plan = _plan(ctx, session, wanted)
        quotas.admit_volume(session, ctx.settings, ctx.project_id, plan.size)
        origin = plan.origin
        volume = models.Volume(
            id=models.new_id(),
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            name=name,
            description=description,
            size=plan.size,
            availability_zone=plan.zone,
            host=plan.backend.pool,
            volume_type=plan.kind,
            bootable=origin.bootable,
            encryption_key_id=origin.encryption_key_id,
            metadata_rows=[models.VolumeMetadata(key=key, value=value) for key, value in (metadata or {}).items()],
            image_metadata_rows=[
                models.ImageMetadata(key=key, value=value) for key, value in origin.image_metadata.items()
            ],
            attachments=[],
            **(dict(origin.columns) | columns),
        )
        verb = SOURCES[source[0]].verb if source else "create"
        arguments = {"source": {"kind": source[0], "id": source[1], **origin.arguments}} if source else {}
        owner = LIFECYCLE.start(volume, verb, ctx.settings.lease, ctx.request_id, **arguments)
        session.add(volume)
    LIFECYCLE.run(ctx.world, volume.id, owner)
    return volume


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    size: int | None
    source: tuple[str, str] | None
    volume_type: str | None
    zone: str | None
    hints: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    size: int
    origin: Origin
    kind: models.VolumeType
    zone: str
    backend: Backend


def _plan(ctx: Context, session: Session, wanted: _Wanted) -> _Plan:
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
    backend, zone = placement.choose(
        ctx,
        session,
        kind,
        size,
        zone=wanted.zone or origin.availability_zone,
        hints=wanted.hints,
        near=origin.host,
    )
    return _Plan(size, origin, kind, zone, backend)


@LIFECYCLE.step("create")
def _create(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    source = arguments.get("source")
    if source is not None:
        return SOURCES[source["kind"]].fill(world, volume, source)
    world.cluster(volume.host).create(volume.image, volume.size * GIB)
    return None


def update(ctx: Context, volume: models.Volume, **changes: Any) -> models.Volume:
    """Change name, description or metadata (which replaces all) and return the new row."""
    with ctx.world.db.write() as session:
        current = _get(ctx, session, volume.id)
        _refuse_maintenance(current)
        if "metadata" in changes:
            _write_metadata(session, current, changes.pop("metadata") or {}, replace=True)
        for key, value in changes.items():
            setattr(current, key, value)
        current.updated_at = models.utcnow()
    return current


def delete(ctx: Context, volume: models.Volume) -> None:
    """Delete a volume: its image goes to the trash now and is removed from there in the background.

    Raises InvalidVolume when its state does not allow it, or when a client that is not ours has the image open.
    """
    ctx.world.cluster(volume.host).check()
    attached = exists().where(models.Attachment.volume_id == models.Volume.id)
    with ctx.world.db.write() as session:
        owner = LIFECYCLE.begin(
            session, volume.id, "delete", ctx.settings.lease, ctx.request_id,
            models.Volume.migration_status.is_(None), ~attached,
        )  # fmt: skip
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


@LIFECYCLE.step("delete")
def _delete(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    image_id = world.cluster(volume.host).trash(volume.image)
    if image_id is None:
        return {}
    return {"followed_by": {**arguments, "verb": "purge", "image_id": image_id}}


@LIFECYCLE.step("purge")
def _purge(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> None:
    try:
        gone = world.cluster(volume.host).purge(arguments["image_id"])
    except errors.CephError as error:
        # Whatever it is (a clone that needs it, a dead client's watch): nobody else will ever remove this image.
        raise errors.CephUnavailable(error.message) from error
    if not gone:
        raise errors.CephUnavailable(f"image {arguments['image_id']} cannot be removed from the trash yet")


@LIFECYCLE.settled
def _settled(
    session: Session, volume: models.Volume, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    if error is not None and intent["verb"] in messages.ACTIONS:
        messages.leave(session, volume, intent["verb"], error.message, request_id=intent["request_id"])


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
        current = _get(ctx, session, volume.id)
        _refuse_maintenance(current)
        if guard is not None and not guard(metadata(current)):
            raise errors.PreconditionFailed
        _write_metadata(session, current, values, replace=replace)
        current.updated_at = models.utcnow()
    return metadata(current)


def delete_metadata(ctx: Context, volume: models.Volume, key: str) -> None:
    """Remove one key. Raises VolumeMetadataNotFound."""
    with ctx.world.db.write() as session:
        current = _get(ctx, session, volume.id)
        _refuse_maintenance(current)
        row = next((row for row in current.metadata_rows if row.key == key), None)
        if row is None:
            raise errors.VolumeMetadataNotFound(volume.id, key)
        current.metadata_rows.remove(row)
        current.updated_at = models.utcnow()


def _write_metadata(session: Session, volume: models.Volume, values: Mapping[str, str], *, replace: bool) -> None:
    rows = {row.key: row for row in volume.metadata_rows}
    for key, value in values.items():
        if key in rows:
            rows[key].value = value
        else:
            volume.metadata_rows.append(models.VolumeMetadata(key=key, value=value))
    if replace:
        for key in rows.keys() - values.keys():
            volume.metadata_rows.remove(rows[key])
    session.flush()


def _refuse_maintenance(volume: models.Volume) -> None:
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
