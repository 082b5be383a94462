# SPDX-License-Identifier: Apache-2.0
"""/backups: make, list, show, update, delete, restore; records that other services can take in; actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields, validate
from sqlalchemy import ColumnElement, and_, exists, func, true

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Answer, Blueprint, Page
from cinderlite.api.schema import (
    ActionBody,
    Body,
    Bool,
    Computed,
    Id,
    Metadata,
    Name,
    Schema,
    Time,
    Word,
    links,
    versioned,
)
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import backup_records, backups, volumes
from cinderlite.db import models

bp = Blueprint("backups", SERVICE, "Backups of volumes and snapshots.")


class BackupRef(Schema):
    """A backup as the short list and the answers of writes show it."""

    envelope = "backup", "backups"
    links_key = "backups_links"

    id = fields.String()
    name = fields.String()
    links = links("backups")


class Backup(BackupRef):
    """A backup in full. Those that others are incremental to may be deleted, too."""

    status = fields.String()
    size = fields.Integer()
    object_count = fields.Integer()
    availability_zone = fields.String()
    container = fields.String()
    created_at = Time()
    updated_at = Time()
    description = fields.String()
    fail_reason = fields.String()
    volume_id = fields.String()
    is_incremental = Computed(lambda backup: backup.parent_id is not None)
    has_dependent_backups = fields.Boolean(attribute="has_increments")
    snapshot_id = fields.String()
    data_timestamp = Time()
    metadata = versioned(Computed(backups.metadata), since="3.43")
    project = versioned(
        fields.String(attribute="project_id", data_key="os-backup-project-attr:project_id"),
        since="3.18",
        policy="backup:backup_project_attribute",
    )
    user_id = versioned(fields.String(), since="3.56", policy="backup:backup_project_attribute")
    encryption_key_id = versioned(fields.String(), since="3.64", optional=True)


class BackupCreate(Body):
    """Of what, and whether only what changed since the last one is stored."""

    envelope = "backup", ""
    strict_since = Version(3, 0)

    volume_id = Id(required=True)
    snapshot_id = Id(allow_none=True)
    name = Name()
    description = Name()
    container = fields.String(validate=validate.Length(max=255), allow_none=True)
    incremental = Bool(allow_none=True)
    force = Bool(allow_none=True)
    metadata = versioned(Metadata(allow_none=True), since="3.43")
    availability_zone = versioned(fields.String(validate=validate.Length(1, 255), allow_none=True), since="3.51")


class BackupUpdate(Body):
    """What is to change."""

    envelope = "backup", ""
    strict_since = Version(3, 0)

    name = Name()
    description = Name()
    metadata = versioned(Metadata(), since="3.43")


def _metadata_filter(text: str) -> ColumnElement[bool]:
    rows = models.BackupMetadata
    found = [
        exists().where(rows.backup_id == models.Backup.id, rows.key == key, rows.value == value)
        for key, value in paging.literal("metadata", text).items()
    ]
    return and_(true(), *found)


_B = models.Backup
LISTING = Listing(
    id=_B.id,
    keys={
        "id": _B.id, "created_at": _B.created_at, "status": _B.status, "volume_id": _B.volume_id, "size": _B.size,
        "name": func.coalesce(_B.name, ""), "display_name": func.coalesce(_B.name, ""),
        "description": func.coalesce(_B.description, ""), "updated_at": func.coalesce(_B.updated_at, _B.created_at),
        "data_timestamp": func.coalesce(_B.data_timestamp, _B.created_at), "project_id": _B.project_id,
    },
    filters={
        "name": [filter_(lambda text: _B.name == text)],
        "status": [filter_(lambda text: _B.status == text)],
        "volume_id": [filter_(lambda text: _B.volume_id == text)],
        "metadata": [filter_(_metadata_filter, since="3.43")],
        "id": [filter_(lambda text: _B.id == text, admin=True)],
        "project_id": [filter_(lambda text: _B.project_id == text, admin=True)],
        "user_id": [filter_(lambda text: _B.user_id == text, admin=True)],
    },
    like={"name": _B.name, "status": _B.status, "volume_id": _B.volume_id, "description": _B.description},
    not_found=errors.BackupNotFound,
    resource="backup",
)  # fmt: skip


def _page(ctx: Context, query: Mapping[str, str]) -> Page:
    base = backups.visible(ctx, all_projects=paging.everybody(ctx, query))
    return paging.page(ctx, LISTING, base, query, options=backups.SHOWN)


@bp.get("/backups", returns=(200, BackupRef), policy="backup:get_all")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List backups; takes limit, marker, offset, sort, filters by field and, since 3.45, `with_count`."""
    return _page(ctx, query)


@bp.get("/backups/detail", returns=(200, Backup), policy="backup:get_all")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List backups in full; takes what the other list takes."""
    return _page(ctx, query)


@bp.get("/backups/<id>", returns=(200, Backup), policy="backup:get", on=backups.get)
def show(_ctx: Context, backup: models.Backup) -> models.Backup:
    """Show a backup; while it is made `object_count` says how many pieces of 4 MiB have been looked at."""
    return backup


@bp.post("/backups", body=BackupCreate, returns=(202, BackupRef), policy="backup:create")
def create(ctx: Context, body: dict[str, Any]) -> models.Backup:
    """Back up a volume, or one of its snapshots; a volume in use needs `force`.

    An incremental backup stores only what differs from the newest one before it, and can be restored and deleted like
    any other.
    """
    volume = volumes.bare(ctx, body["volume_id"], gone=body.get("snapshot_id") is not None)
    kept = ("name", "description", "container", "availability_zone", "metadata", "snapshot_id")
    return backups.create(
        ctx,
        volume,
        incremental=bool(body.get("incremental")),
        in_use=bool(body.get("force")),
        **{key: body[key] for key in kept if key in body},
    )


@bp.put(
    "/backups/<id>",
    body=BackupUpdate,
    returns=(200, BackupRef),
    policy="backup:update",
    since="3.9",
    on=backups.get,
)
def update(ctx: Context, backup: models.Backup, body: dict[str, Any]) -> models.Backup:
    """Change a backup's name, description or, since 3.43, metadata."""
    if not body:
        raise errors.BadRequest("Missing required element 'backup' in request body.")
    return backups.change(ctx, backup, **body)


@bp.delete("/backups/<id>", returns=(202, None), policy="backup:delete", on=backups.get)
def delete(ctx: Context, backup: models.Backup) -> None:
    """Delete a backup, also the one that others are incremental to, or one that is still being made."""
    backups.delete(ctx, backup)


class Restore(Body):
    """Over which volume; without one a new volume is made."""

    envelope = "restore", ""
    strict_since = Version(3, 0)

    volume_id = Id(allow_none=True)
    name = Name()


@bp.post("/backups/<id>/restore", body=Restore, returns=(202, None), policy="backup:restore", on=backups.get)
def restore(ctx: Context, backup: models.Backup, body: dict[str, Any]) -> Answer:
    """Restore a backup into a new volume, or over an available one that is at least as big."""
    volume = backups.restore(ctx, backup, volume_id=body.get("volume_id"), name=body.get("name"))
    told = {"backup_id": backup.id, "volume_id": volume.id, "volume_name": volume.name}
    return Answer({"restore": told})


@bp.get("/backups/<id>/export_record", policy="backup:export-import", on=backups.get)
def export_record(_ctx: Context, backup: models.Backup) -> Answer:
    """Show the record by which another cinderlite over the same backup pool can restore a backup."""
    return Answer({"backup-record": backup_records.export(backup)})


class Record(Body):
    """A record that `export_record` showed."""

    envelope = "backup-record", ""
    strict_since = Version(3, 0)

    backup_service = fields.String(required=True, validate=validate.Length(1, 255))
    backup_url = fields.String(required=True, validate=validate.Length(min=1))


@bp.post("/backups/import_record", body=Record, returns=(201, BackupRef), policy="backup:backup-import")
def import_record(ctx: Context, body: dict[str, Any]) -> models.Backup:
    """Make a backup known of which there is only a record, for example after the loss of the database."""
    return backup_records.take_in(ctx, body["backup_service"], body["backup_url"])


class ResetStatus(ActionBody):
    """The status to set."""

    status = Word(required=True, validate=validate.OneOf(("available", "error")))


_ACTION = "/backups/<id>/action"
_ADMIN = "volume_extension:backup_admin_actions:"


@bp.action(_ACTION, "os-reset_status", body=ResetStatus, policy=_ADMIN + "reset_status", on=backups.get)
def reset_status(ctx: Context, backup: models.Backup, body: dict[str, Any]) -> None:
    """Set a backup's status by hand."""
    backups.reset_status(ctx, backup, body["status"])


@bp.action(_ACTION, "os-force_delete", policy=_ADMIN + "force_delete", on=backups.get)
def force_delete(ctx: Context, backup: models.Backup) -> None:
    """Delete a backup whatever its status."""
    backups.delete(ctx, backup, force=True)
