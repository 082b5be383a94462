# SPDX-License-Identifier: Apache-2.0
"""/volumes: create, list, show, update, delete, sum up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from marshmallow import fields
from sqlalchemy import ColumnElement, and_, exists, false, func, true

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, boolean, filter_
from cinderlite.api.rest import Answer, Blueprint, Page
from cinderlite.api.schema import (
    VIEW,
    Body,
    Bool,
    Computed,
    GiB,
    Id,
    MetaBody,
    Metadata,
    MetadataBody,
    Name,
    Schema,
    Time,
    links,
    named,
    time_text,
    versioned,
)  # fmt: skip
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import backups, group_types, image_metadata, images, types, volumes
from cinderlite.db import models

bp = Blueprint("volumes", SERVICE, "Volumes.")

STRICT = Version(3, 53)
FROM_IMAGE = "volume:create_from_image"
#: Since when an image that a Nova made of a server with volumes stands for a snapshot.
SERVER_IMAGES = Version(3, 46)
#: Since when a volume can be deleted with `force`.
FORCE_DELETE = Version(3, 23)
#: Statuses that clients do not know → what they are shown instead, as Cinder does.
MASKED = {"managing": "creating", "error_managing": "error", "error_managing_deleting": "deleting"}
HOST = "volume_extension:volume_host_attribute"
TENANT = "volume_extension:volume_tenant_attribute"
MIGRATION = "volume_extension:volume_mig_status_attribute"
IMAGE = "volume_extension:volume_image_metadata:show"


def _metadata(volume: models.Volume) -> dict[str, str]:
    """The user's keys, and those by which Cinder shows that only reading is allowed and how os-attach attached it."""
    shown = {row.key: row.value for row in volume.metadata_rows}
    if volume.readonly is not None:
        shown["readonly"] = str(volume.readonly)
    modes = [one.mode for one in volume.attachments if _by_action(one) and one.mode is not None]
    if modes:
        shown["attached_mode"] = modes[-1]
    return shown


def _by_action(attachment: models.Attachment) -> bool:
    """Whether it was os-attach that made it: nobody told how the image is opened."""
    return attachment.status == "attached" and not attachment.managed and attachment.connector is None


def _attachments(volume: models.Volume) -> list[dict[str, Any]]:
    """Only what is attached: CSI takes any entry for a disk that is there."""
    held = [one for one in volume.attachments if one.status == "attached"]
    if not held:
        return []
    hosts = VIEW.get().to_service or VIEW.get().allows(HOST)
    return [
        {
            "id": volume.id,
            "attachment_id": one.id,
            "volume_id": volume.id,
            "server_id": one.server_id,
            "host_name": one.host if hosts else None,
            "device": one.device,
            "attached_at": time_text(one.attached_at),
        }
        for one in held
    ]


def _consistency_group(volume: models.Volume) -> str | None:
    """The group's id, if that group is what the API used to call a consistency group."""
    group = volume.group
    return group.id if group is not None and group.group_type.name == group_types.RESERVED else None


class VolumeRef(Schema):
    """A volume in the short list."""

    envelope = "volume", "volumes"
    links_key = "volumes_links"

    id = fields.String()
    name = fields.String()
    links = links("volumes")


class VolumeWritten(VolumeRef):
    """A volume as create and update answer it."""

    user_id = fields.String()
    description = fields.String()
    availability_zone = fields.String()
    status = Computed(lambda volume: MASKED.get(volume.status, volume.status))
    size = fields.Integer()
    created_at = Time()
    updated_at = Time()
    volume_type = fields.String(attribute="volume_type.name")
    snapshot_id = fields.String()
    source_volid = fields.String()
    consistencygroup_id = Computed(_consistency_group)
    metadata = Computed(_metadata)
    bootable = Computed(lambda volume: "true" if volume.bootable else "false")
    encrypted = Computed(lambda volume: volume.encrypted)
    multiattach = fields.Boolean()
    replication_status = Computed(lambda _volume: None)
    attachments = Computed(_attachments)
    migration_status = versioned(fields.String(), policy=MIGRATION)
    group_id = versioned(fields.String(), since="3.13")
    provider_id = versioned(Computed(lambda _volume: None), since="3.21", policy=HOST)
    shared_targets = versioned(Computed(lambda _volume: False), since="3.48")
    service_uuid = versioned(Computed(lambda _volume: None), since="3.48")
    cluster_name = versioned(Computed(lambda _volume: None), since="3.61", policy=HOST)
    volume_type_id = versioned(fields.String(), since="3.63")
    encryption_key_id = versioned(fields.String(), since="3.64", optional=True)
    consumes_quota = versioned(fields.Boolean(), since="3.65")


class Volume(VolumeWritten):
    """A volume in full."""

    host = versioned(fields.String(data_key="os-vol-host-attr:host"), policy=HOST)
    tenant = versioned(fields.String(attribute="project_id", data_key="os-vol-tenant-attr:tenant_id"), policy=TENANT)
    migstat = versioned(
        fields.String(attribute="migration_status", data_key="os-vol-mig-status-attr:migstat"), policy=MIGRATION
    )
    name_id = versioned(Computed(lambda _volume: None, data_key="os-vol-mig-status-attr:name_id"), policy=MIGRATION)
    volume_image_metadata = versioned(
        Computed(lambda volume: image_metadata.shown(volume) or None), policy=IMAGE, optional=True
    )


class VolumeCreate(Body):
    """What a volume is to be: how big, of which type, made from what."""

    envelope = "volume", ""
    strict_since = STRICT
    beside = frozenset({"OS-SCH-HNT:scheduler_hints", "scheduler_hints"})

    size = GiB(allow_none=True)
    name = Name()
    display_name = Name()
    description = Name()
    display_description = Name()
    volume_type = fields.String(allow_none=True)
    availability_zone = fields.String(allow_none=True)
    metadata = Metadata(allow_none=True)
    multiattach = Bool(allow_none=True)
    snapshot_id = Id(allow_none=True)
    source_volid = Id(allow_none=True)
    imageRef = fields.String(allow_none=True)  # noqa: N815 -- the API's name
    image_id = fields.String(allow_none=True)
    consistencygroup_id = Id(allow_none=True)
    backup_id = versioned(Id(allow_none=True), since="3.47")
    group_id = versioned(Id(allow_none=True), since="3.13")


class VolumeUpdate(Body):
    """What is to change."""

    envelope = "volume", ""
    strict_since = STRICT

    name = Name()
    display_name = Name()
    description = Name()
    display_description = Name()
    metadata = Metadata(allow_none=True)


def _from_image(sent: Any) -> bool:
    """Whether the image service is asked before a volume is accepted."""
    inner = sent.get("volume")
    return isinstance(inner, dict) and bool(inner.get("imageRef") or inner.get("image_id"))


@bp.post("/volumes", body=VolumeCreate, returns=(202, VolumeWritten), policy="volume:create", slow=_from_image)
def create(ctx: Context, body: dict[str, Any], hints: dict[str, Any]) -> models.Volume:
    """Create a volume, empty or from a snapshot, a volume, an image or a backup.

    The answer shows it as accepted (`creating`). What is quick is done by then, so the first GET shows `available`;
    copies go on in the background. Answers 413 when the project's quota does not allow it, 503 when Ceph does not
    answer.
    """
    if body.get("multiattach"):
        raise errors.BadRequest(
            "multiattach parameter has been removed. The default behavior is to use multiattach enabled volume types. "
            "Contact your administrator to create a multiattach enabled volume type and use it to create multiattach "
            "volumes."
        )
    return volumes.create(
        ctx,
        size=body.get("size"),
        source=_source(ctx, body),
        volume_type=body.get("volume_type"),
        availability_zone=body.get("availability_zone"),
        metadata=body.get("metadata"),
        hints=hints,
        group_id=body.get("group_id") or body.get("consistencygroup_id"),
        may_share=VIEW.get().allows(types.SHARING),
        **named(body),
    )


def _source(ctx: Context, body: Mapping[str, Any]) -> tuple[str, Any] | None:
    """What the volume is to be made from: a key of `volumes.SOURCES` and what it takes."""
    given = {key: body[key] for key in ("snapshot_id", "source_volid", "imageRef", "image_id", "backup_id")
             if body.get(key) is not None}  # fmt: skip
    if "imageRef" in given:  # Cinder's older name for the same thing wins.
        given["image_id"] = given.pop("imageRef")
    if len(given) > 1:
        raise errors.BadRequest(f"A volume has one source at most, but {', '.join(sorted(given))} were given.")
    if "image_id" in given:
        if not VIEW.get().allows(FROM_IMAGE):
            raise errors.Forbidden(FROM_IMAGE)
        return images.source(ctx, given["image_id"], of_servers=VIEW.get().version >= SERVER_IMAGES)
    if "backup_id" in given:
        return backups.source(ctx, backups.get(ctx, given["backup_id"]))
    for key, value in given.items():
        if key not in volumes.SOURCES:
            raise errors.InvalidInput(f"volumes cannot be created from {key} by this service")
        return key, value
    return None


def _equal(column: Any) -> Any:
    return lambda text: column == text


def _metadata_filter(text: str) -> ColumnElement[bool]:
    rows = models.VolumeMetadata
    pairs = paging.literal("metadata", text)
    found = [
        exists().where(rows.volume_id == models.Volume.id, rows.key == key, rows.value == value)
        if key != "readonly"
        else _readonly(value)
        for key, value in pairs.items()
    ]
    return and_(true(), *found)


def _image_metadata_filter(text: str) -> ColumnElement[bool]:
    rows = models.ImageMetadata
    found = [
        exists().where(rows.volume_id == models.Volume.id, rows.key == key, rows.value == value)
        for key, value in paging.literal("glance_metadata", text).items()
    ]
    return and_(true(), *found)


def _readonly(text: str) -> ColumnElement[bool]:
    """The volumes whose metadata show that key with that value."""
    return models.Volume.readonly.is_(text == "True") if text in ("True", "False") else false()


def _size(text: str) -> ColumnElement[bool]:
    return models.Volume.size == (int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1)


_V = models.Volume
LISTING = Listing(
    id=_V.id,
    keys={
        "id": _V.id, "created_at": _V.created_at, "size": _V.size, "status": _V.status, "host": _V.host,
        "bootable": _V.bootable, "availability_zone": _V.availability_zone, "project_id": _V.project_id,
        "user_id": _V.user_id, "volume_type_id": _V.volume_type_id,
        "name": func.coalesce(_V.name, ""), "display_name": func.coalesce(_V.name, ""),
        "updated_at": func.coalesce(_V.updated_at, _V.created_at),
    },
    filters={
        "name": [filter_(_equal(_V.name))],
        "display_name": [filter_(_equal(_V.name))],
        "status": [filter_(_equal(_V.status))],
        "metadata": [filter_(_metadata_filter)],
        # Not among the filters that Cinder lets members use unless it is configured so.
        "glance_metadata": [filter_(_image_metadata_filter, since="3.4", admin=True)],
        "bootable": [
            filter_(lambda text: _V.bootable.is_(text not in ("false", "False")), until="3.1"),
            filter_(lambda text: _V.bootable.is_(boolean("bootable", text)), since="3.2"),
        ],
        "migration_status": [filter_(lambda text: _V.migration_status.is_(None) if text in ("None", "none", "null")
                                     else _V.migration_status == text)],
        "availability_zone": [filter_(_equal(_V.availability_zone))],
        "group_id": [filter_(_equal(_V.group_id), since="3.10")],
        "size": [filter_(_size)],
        "consumes_quota": [
            filter_(lambda text: _V.consumes_quota.is_(boolean("consumes_quota", text)), since="3.65")
        ],
        "created_at": [filter_(paging.moments(_V.created_at, "created_at"), since="3.60")],
        "updated_at": [filter_(paging.moments(_V.updated_at, "updated_at"), since="3.60")],
        "id": [filter_(_equal(_V.id), admin=True)],
        "project_id": [filter_(_equal(_V.project_id), admin=True)],
        "user_id": [filter_(_equal(_V.user_id), admin=True)],
        "host": [filter_(_equal(_V.host), admin=True)],
        "volume_type_id": [filter_(_equal(_V.volume_type_id), admin=True)],
    },
    like={"name": _V.name, "display_name": _V.name, "status": _V.status, "availability_zone": _V.availability_zone,
          "description": _V.description},
    not_found=errors.VolumeNotFound,
    resource="volume",
)  # fmt: skip


def _page(ctx: Context, query: Mapping[str, str], options: Any) -> Page:
    base = volumes.visible(ctx, all_projects=paging.everybody(ctx, query))
    return paging.page(ctx, LISTING, base, query, options=options)


@bp.get("/volumes", returns=(200, VolumeRef), policy="volume:get_all")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List volumes: ids, names and links.

    Takes limit, marker, offset, sort, filters by field, `all_tenants` from administrators and, since 3.45,
    `with_count`.
    """
    return _page(ctx, query, ())


@bp.get("/volumes/detail", returns=(200, Volume), policy="volume:get_all")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List volumes in full; takes what the short list takes."""
    return _page(ctx, query, volumes.SHOWN)


class Summary(Schema):
    """Sums over volumes; sizes in GiB."""

    envelope = "volume-summary", ""

    total_count = Computed(lambda sums: sums[0])
    total_size = Computed(lambda sums: sums[1])
    metadata = versioned(Computed(lambda sums: sums[2]), since="3.36")


@bp.get("/volumes/summary", returns=(200, Summary), policy="volume:get_all", since="3.12")
def summary(ctx: Context, query: Mapping[str, str]) -> tuple[int, int, dict[str, list[str]]]:
    """Count the volumes and add up their sizes; since 3.36 with every value of every metadata key."""
    return volumes.summary(ctx, all_projects=paging.everybody(ctx, query))


@bp.get("/volumes/<id>", returns=(200, Volume), policy="volume:get", on=volumes.get)
def show(_ctx: Context, volume: models.Volume) -> models.Volume:
    """Show a volume."""
    return volume


@bp.put("/volumes/<id>", body=VolumeUpdate, returns=(200, VolumeWritten), policy="volume:update", on=volumes.get)
def update(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> models.Volume:
    """Change a volume's name, description or metadata (which replaces all of it)."""
    changes = named(body) | ({"metadata": body["metadata"]} if "metadata" in body else {})
    if not changes and VIEW.get().version >= STRICT:
        raise errors.BadRequest(
            "Invalid input for field/attribute volume. Value: {}. {} does not have enough properties"
        )
    return volumes.update(ctx, volume, **changes)


@bp.delete("/volumes/<id>", returns=(202, None), policy="volume:delete", on=volumes.bare)
def delete(ctx: Context, volume: models.Volume, query: Mapping[str, str]) -> None:
    """Delete a volume, with `cascade=true` its snapshots too, and since 3.23 with `force=true` whatever its status.

    It must be in no operation, attached to nothing and without snapshots, else 400. By the time of the answer the
    volume is gone (its image is in the pool's trash, which is emptied in the background). Volumes that were made from
    it keep their data.
    """
    force = paging.flag(query, "force") and VIEW.get().version >= FORCE_DELETE
    if force and not VIEW.get().allows("volume:force_delete"):
        raise errors.Forbidden("volume:force_delete")
    volumes.delete(ctx, volume, cascade=paging.flag(query, "cascade"), force=force)


# -- metadata


def etag(metadata: Mapping[str, str]) -> str:
    """The ETag of metadata: the same for the same keys and values, whatever their order."""
    # Not a secret's digest: it only has to differ when the content does.
    return hashlib.sha256(repr(sorted(metadata.items())).encode()).hexdigest()[:32]


def _tagged(metadata: dict[str, str]) -> Answer:
    headers = {"ETag": f'"{etag(metadata)}"'} if VIEW.get().version >= METADATA_ETAG else {}
    return Answer({"metadata": metadata}, headers)


def _guard(headers: Mapping[str, str]) -> Callable[[Mapping[str, str]], bool] | None:
    """A check that metadata has one of the ETags of If-Match; None if the request does not care."""
    wanted = headers.get("If-Match")
    if wanted is None or VIEW.get().version < METADATA_ETAG:
        return None
    tags = {tag.strip().removeprefix("W/").strip('"') for tag in wanted.split(",")}
    return lambda metadata: "*" in tags or etag(metadata) in tags


METADATA_ETAG = Version(3, 15)
_READ = "volume:get_volume_metadata"
_WRITE = "volume:update_volume_metadata"


@bp.get("/volumes/<id>/metadata", policy=_READ, on=volumes.get)
def show_metadata(_ctx: Context, volume: models.Volume) -> Answer:
    """Show a volume's metadata, since 3.15 with an ETag."""
    return _tagged(volumes.metadata(volume))


@bp.post("/volumes/<id>/metadata", body=MetadataBody, policy="volume:create_volume_metadata", on=volumes.get)
def add_metadata(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> Answer:
    """Add to a volume's metadata and answer all of it."""
    return _tagged(volumes.set_metadata(ctx, volume, body["metadata"], replace=False))


@bp.put("/volumes/<id>/metadata", body=MetadataBody, policy=_WRITE, on=volumes.get)
def replace_metadata(ctx: Context, volume: models.Volume, body: dict[str, Any], headers: Mapping[str, str]) -> Answer:
    """Replace a volume's metadata; since 3.15 only if it still has the ETag of If-Match, else 412."""
    return _tagged(volumes.set_metadata(ctx, volume, body["metadata"], replace=True, guard=_guard(headers)))


@bp.get("/volumes/<id>/metadata/<key>", policy=_READ, on=volumes.get)
def show_key(_ctx: Context, volume: models.Volume, key: str) -> Answer:
    """Show one key of a volume's metadata."""
    values = volumes.metadata(volume)
    if key not in values:
        raise errors.VolumeMetadataNotFound(volume.id, key)
    return Answer({"meta": {key: values[key]}})


@bp.put("/volumes/<id>/metadata/<key>", body=MetaBody, policy=_WRITE, on=volumes.get)
def replace_key(
    ctx: Context, volume: models.Volume, body: dict[str, Any], key: str, headers: Mapping[str, str]
) -> Answer:
    """Set one key of a volume's metadata; If-Match as for all of it."""
    if list(body["meta"]) != [key]:
        raise errors.BadRequest("Request body and URI mismatch")
    volumes.set_metadata(ctx, volume, body["meta"], replace=False, guard=_guard(headers))
    return Answer({"meta": body["meta"]})


@bp.delete("/volumes/<id>/metadata/<key>", policy="volume:delete_volume_metadata", on=volumes.get)
def delete_key(ctx: Context, volume: models.Volume, key: str) -> None:
    """Remove one key of a volume's metadata."""
    volumes.delete_metadata(ctx, volume, key)
