# SPDX-License-Identifier: Apache-2.0
"""/snapshots: create, list, show, update, delete, their metadata, and the actions on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import fields, validate
from sqlalchemy import ColumnElement, and_, exists, func, select, true
from sqlalchemy.orm import selectinload

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, boolean, filter_
from cinderlite.api.rest import Answer, Blueprint, Page
from cinderlite.api.schema import (
    VIEW,
    ActionBody,
    Bool,
    Computed,
    Id,
    MetaBody,
    Metadata,
    MetadataBody,
    Name,
    Schema,
    StrictBody,
    Time,
    Word,
    named,
    versioned,
)
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import snapshots, volumes
from cinderlite.db import models

bp = Blueprint("snapshots", SERVICE, "Snapshots of volumes.")

#: Since when a snapshot of a volume in use needs no `force`.
FORCELESS = Version(3, 66)
STATUSES = (
    "available", "backing-up", "creating", "deleted", "deleting", "error", "error_deleting", "restoring", "unmanaging",
    "updating",
)  # fmt: skip
EXTENDED = "volume_extension:extended_snapshot_attributes"


class SnapshotWritten(Schema):
    """A snapshot as the lists and the answers of writes show it."""

    envelope = "snapshot", "snapshots"
    links_key = "snapshots_links"

    id = fields.String()
    created_at = Time()
    updated_at = Time()
    name = fields.String()
    description = fields.String()
    volume_id = fields.String()
    status = fields.String()
    size = fields.Integer(attribute="volume_size")
    metadata = Computed(snapshots.metadata)
    group_snapshot_id = versioned(fields.String(), since="3.14")
    user_id = versioned(fields.String(), since="3.41")
    consumes_quota = versioned(fields.Boolean(), since="3.65")


class Snapshot(SnapshotWritten):
    """A snapshot in full."""

    project = versioned(
        fields.String(attribute="project_id", data_key="os-extended-snapshot-attributes:project_id"), policy=EXTENDED
    )
    progress = versioned(fields.String(data_key="os-extended-snapshot-attributes:progress"), policy=EXTENDED)


class SnapshotCreate(StrictBody):
    """Of which volume, and what it is called."""

    envelope = "snapshot", ""

    volume_id = Id(required=True, allow_none=True)
    name = Name()
    display_name = Name()
    description = Name()
    display_description = Name()
    force = Bool(allow_none=True)
    metadata = Metadata(allow_none=True)


class SnapshotUpdate(StrictBody):
    """What is to change."""

    envelope = "snapshot", ""

    name = Name()
    display_name = Name()
    description = Name()
    display_description = Name()


def _metadata_filter(text: str) -> ColumnElement[bool]:
    rows = models.SnapshotMetadata
    found = [
        exists().where(rows.snapshot_id == models.Snapshot.id, rows.key == key, rows.value == value)
        for key, value in paging.literal("metadata", text).items()
    ]
    return and_(true(), *found)


def _in_zone(text: str) -> ColumnElement[bool]:
    return models.Snapshot.volume_id.in_(select(models.Volume.id).where(models.Volume.availability_zone == text))


_S = models.Snapshot
LISTING = Listing(
    id=_S.id,
    keys={
        "id": _S.id, "created_at": _S.created_at, "status": _S.status, "volume_id": _S.volume_id,
        "volume_size": _S.volume_size, "size": _S.volume_size, "project_id": _S.project_id,
        "name": func.coalesce(_S.name, ""), "display_name": func.coalesce(_S.name, ""),
        "description": func.coalesce(_S.description, ""), "updated_at": func.coalesce(_S.updated_at, _S.created_at),
    },
    filters={
        "name": [filter_(lambda text: _S.name == text)],
        "display_name": [filter_(lambda text: _S.name == text)],
        "status": [filter_(lambda text: _S.status == text)],
        "volume_id": [filter_(lambda text: _S.volume_id == text)],
        "metadata": [filter_(_metadata_filter, since="3.22")],
        "availability_zone": [filter_(_in_zone)],
        "consumes_quota": [filter_(lambda text: _S.consumes_quota.is_(boolean("consumes_quota", text)), since="3.65")],
        "id": [filter_(lambda text: _S.id == text, admin=True)],
        "project_id": [filter_(lambda text: _S.project_id == text, admin=True)],
        "user_id": [filter_(lambda text: _S.user_id == text, admin=True)],
    },
    like={"name": _S.name, "display_name": _S.name, "status": _S.status, "volume_id": _S.volume_id,
          "description": _S.description},
    not_found=errors.SnapshotNotFound,
    resource="snapshot",
)  # fmt: skip


def _page(ctx: Context, query: Mapping[str, str]) -> Page:
    base = snapshots.visible(ctx, all_projects=paging.everybody(ctx, query))
    return paging.page(ctx, LISTING, base, query, options=[selectinload(_S.metadata_rows)])


@bp.get("/snapshots", returns=(200, SnapshotWritten), policy="volume:get_all_snapshots")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List snapshots; takes limit, marker, offset, sort, filters by field and, since 3.45, `with_count`."""
    return _page(ctx, query)


@bp.get("/snapshots/detail", returns=(200, Snapshot), policy="volume:get_all_snapshots")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List snapshots with their project and progress; takes what the other list takes."""
    return _page(ctx, query)


@bp.post("/snapshots", body=SnapshotCreate, returns=(202, SnapshotWritten), policy="volume:create_snapshot", slow=True)
def create(ctx: Context, body: dict[str, Any]) -> models.Snapshot:
    """Take a snapshot of a volume.

    By the time of the answer it is taken. A volume in use needs `force` before 3.66; since then `force` says nothing
    new and must not be false.
    """
    volume = volumes.bare(ctx, body["volume_id"])
    forceless = VIEW.get().version >= FORCELESS
    if forceless and body.get("force") is False:
        raise errors.InvalidInput("Invalid value 'False' for force: since 3.66 snapshots of volumes in use are allowed")
    return snapshots.create(
        ctx, volume, metadata=body.get("metadata"), in_use=forceless or bool(body.get("force")), **named(body)
    )


@bp.get("/snapshots/<id>", returns=(200, Snapshot), policy="volume:get_snapshot", on=snapshots.get)
def show(_ctx: Context, snapshot: models.Snapshot) -> models.Snapshot:
    """Show a snapshot."""
    return snapshot


@bp.put(
    "/snapshots/<id>",
    body=SnapshotUpdate,
    returns=(200, SnapshotWritten),
    policy="volume:update_snapshot",
    on=snapshots.get,
)
def update(ctx: Context, snapshot: models.Snapshot, body: dict[str, Any]) -> models.Snapshot:
    """Change a snapshot's name or description."""
    if not body:
        raise errors.BadRequest(
            "Invalid input for field/attribute snapshot. Value: {}. {} does not have enough properties"
        )
    return snapshots.update(ctx, snapshot, **named(body))


@bp.delete("/snapshots/<id>", returns=(202, None), policy="volume:delete_snapshot", on=snapshots.get)
def delete(ctx: Context, snapshot: models.Snapshot) -> None:
    """Delete a snapshot. Volumes that were made from it keep their data; nothing is copied for that."""
    snapshots.delete(ctx, snapshot)


# -- metadata


class _Metadata(Metadata):
    """Metadata without slashes in their keys, which Cinder takes here only when the snapshot is created."""

    _KEY = re.compile(r"[a-zA-Z0-9\-_:. ]{1,255}")


class SnapshotMetadataBody(MetadataBody):
    """A snapshot's metadata as a whole."""

    metadata = _Metadata(required=True)


class SnapshotMetaBody(MetaBody):
    """One key of a snapshot's metadata."""

    meta = _Metadata(required=True)


_READ = "volume:get_snapshot_metadata"
_WRITE = "volume:update_snapshot_metadata"


@bp.get("/snapshots/<id>/metadata", policy=_READ, on=snapshots.get)
def show_metadata(_ctx: Context, snapshot: models.Snapshot) -> Answer:
    """Show a snapshot's metadata."""
    return Answer({"metadata": snapshots.metadata(snapshot)})


@bp.post("/snapshots/<id>/metadata", body=SnapshotMetadataBody, policy=_WRITE, on=snapshots.get)
def add_metadata(ctx: Context, snapshot: models.Snapshot, body: dict[str, Any]) -> Answer:
    """Add to a snapshot's metadata and answer all of it."""
    return Answer({"metadata": snapshots.set_metadata(ctx, snapshot, body["metadata"], replace=False)})


@bp.put("/snapshots/<id>/metadata", body=SnapshotMetadataBody, policy=_WRITE, on=snapshots.get)
def replace_metadata(ctx: Context, snapshot: models.Snapshot, body: dict[str, Any]) -> Answer:
    """Replace a snapshot's metadata."""
    return Answer({"metadata": snapshots.set_metadata(ctx, snapshot, body["metadata"], replace=True)})


@bp.get("/snapshots/<id>/metadata/<key>", policy=_READ, on=snapshots.get)
def show_key(_ctx: Context, snapshot: models.Snapshot, key: str) -> Answer:
    """Show one key of a snapshot's metadata."""
    values = snapshots.metadata(snapshot)
    if key not in values:
        raise errors.SnapshotMetadataNotFound(snapshot.id, key)
    return Answer({"meta": {key: values[key]}})


@bp.put("/snapshots/<id>/metadata/<key>", body=SnapshotMetaBody, policy=_WRITE, on=snapshots.get)
def replace_key(ctx: Context, snapshot: models.Snapshot, body: dict[str, Any], key: str) -> Answer:
    """Set one key of a snapshot's metadata."""
    if list(body["meta"]) != [key]:
        raise errors.BadRequest("Request body and URI mismatch")
    snapshots.set_metadata(ctx, snapshot, body["meta"], replace=False)
    return Answer({"meta": body["meta"]})


@bp.delete("/snapshots/<id>/metadata/<key>", policy="volume:delete_snapshot_metadata", on=snapshots.get)
def delete_key(ctx: Context, snapshot: models.Snapshot, key: str) -> None:
    """Remove one key of a snapshot's metadata."""
    snapshots.delete_metadata(ctx, snapshot, key)


# -- actions


class ResetStatus(ActionBody):
    """The status to set."""

    status = Word(required=True, validate=validate.OneOf(STATUSES))


class Report(ActionBody):
    """How far a snapshot is."""

    status = fields.String(required=True)
    progress = fields.String(validate=validate.Regexp(r"^(100|[1-9]?[0-9])%\Z"))


_ACTION = "/snapshots/<id>/action"


@bp.action(
    _ACTION,
    "os-reset_status",
    body=ResetStatus,
    policy="volume_extension:snapshot_admin_actions:reset_status",
    on=snapshots.get,
)
def reset_status(ctx: Context, snapshot: models.Snapshot, body: dict[str, Any]) -> None:
    """Set a snapshot's status by hand."""
    snapshots.reset_status(ctx, snapshot, body["status"])


@bp.action(_ACTION, "os-force_delete", policy="volume_extension:snapshot_admin_actions:force_delete", on=snapshots.get)
def force_delete(ctx: Context, snapshot: models.Snapshot) -> None:
    """Delete a snapshot whatever its status."""
    snapshots.delete(ctx, snapshot, force=True)


@bp.action(
    _ACTION,
    "os-update_snapshot_status",
    body=Report,
    policy="snapshot_extension:snapshot_actions:update_snapshot_status",
    on=snapshots.get,
)
def report(ctx: Context, snapshot: models.Snapshot, body: dict[str, Any]) -> None:
    """Note how far a compute service is with a snapshot that it takes itself."""
    snapshots.report(ctx, snapshot, body["status"], body.get("progress"))
