# SPDX-License-Identifier: Apache-2.0
"""/attachments: who holds a volume.

Attachments that the compute API makes are only shown here. Others, such as a Nova, make their own and plug the disk in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from marshmallow import fields, validate
from sqlalchemy import func

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Body, Computed, Id, Schema, time_text, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import attachments, connections, external, volumes
from cinderlite.db import models

bp = Blueprint("attachments", SERVICE, "Attachments of volumes to servers.")

_A = models.Attachment
LISTING = Listing(
    id=_A.id,
    keys={
        "id": _A.id, "created_at": _A.created_at, "status": _A.status, "attach_status": _A.status,
        "volume_id": _A.volume_id, "instance_id": func.coalesce(_A.server_id, ""),
        "updated_at": func.coalesce(_A.updated_at, _A.created_at),
    },
    filters={
        "id": [filter_(lambda text: _A.id == text, admin=True)],
        "project_id": [filter_(lambda text: _A.project_id == text, admin=True)],
        "volume_id": [filter_(lambda text: _A.volume_id == text)],
        "status": [filter_(lambda text: _A.status == text)],
        "attach_status": [filter_(lambda text: _A.status == text)],
        "instance_id": [filter_(lambda text: _A.server_id == text)],
    },
    like={"volume_id": _A.volume_id, "status": _A.status},
    not_found=errors.AttachmentNotFound,
    resource="attachment",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """An attachment with how its volume is opened."""

    row: models.Attachment
    connection_info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _full(ctx: Context, row: models.Attachment) -> Shown:
    return Shown(row, connections.of(ctx.world, row))


class AttachmentRef(Schema):
    """An attachment in the short list."""

    envelope = "attachment", "attachments"
    links_key = "attachments_links"

    id = fields.String(attribute="row.id")
    status = fields.String(attribute="row.status")
    instance = fields.String(attribute="row.server_id")
    volume_id = fields.String(attribute="row.volume_id")


class Attachment(AttachmentRef):
    """An attachment in full. Absent times are empty strings here, and an absent mode is "null", as Cinder writes them.

    The connection info names the image and the cephx user, never a key; it is empty while there is no connector, and
    where this service itself plugs the disk in.
    """

    attached_at = Computed(lambda shown: time_text(shown.row.attached_at) or "")
    detached_at = Computed(lambda _shown: "")
    attach_mode = Computed(lambda shown: shown.row.mode or "null")
    connection_info = fields.Dict()


def _page(ctx: Context, query: Mapping[str, str]) -> list[models.Attachment]:
    base = attachments.visible(ctx, all_projects=paging.everybody(ctx, query)).order_by(None)
    found = paging.page(ctx, LISTING, base, query)
    return list(found.items)


@bp.get("/attachments", returns=(200, AttachmentRef), policy="volume:attachment_get_all", since="3.27")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List attachments; filters volume_id, instance_id, status, attach_status."""
    return Page([Shown(row) for row in _page(ctx, query)])


@bp.get("/attachments/detail", returns=(200, Attachment), policy="volume:attachment_get_all", since="3.27")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List attachments in full."""
    return Page([_full(ctx, row) for row in _page(ctx, query)])


@bp.get(
    "/attachments/<id>", returns=(200, Attachment), policy="volume:attachment_get", since="3.27", on=attachments.get
)
def show(ctx: Context, attachment: models.Attachment) -> Shown:
    """Show an attachment."""
    return _full(ctx, attachment)


class AttachmentCreate(Body):
    """Which volume is to be reserved for which server; with a connector also who opens it."""

    envelope = "attachment", ""
    strict_since = Version(3, 0)

    volume_uuid = Id(required=True)
    instance_uuid = Id()
    connector = fields.Dict(keys=fields.String(), allow_none=True)
    mode = versioned(fields.String(validate=validate.OneOf(("rw", "ro"))), since="3.54")


@bp.post(
    "/attachments",
    body=AttachmentCreate,
    returns=(200, Attachment),
    policy="volume:attachment_create",
    since="3.27",
)
def create(ctx: Context, body: dict[str, Any]) -> Shown:
    """Reserve a volume for a server that somebody else runs, such as a Nova; with a connector say how it is opened.

    Answers 400 unless the volume is available, or in use and made for several, or held by the same server already.
    """
    volume = volumes.get(ctx, body["volume_uuid"])
    if volume.multiattach and volume.bootable and volume.status == "in-use":
        _refuse_unless_allowed("volume:multiattach_bootable_volume")
    made = external.create(
        ctx,
        volume,
        server_id=body.get("instance_uuid"),
        mode=body.get("mode"),
        connector=body.get("connector"),
    )
    return _full(ctx, made)


def _refuse_unless_allowed(rule: str) -> None:
    if not VIEW.get().allows(rule):
        raise errors.Forbidden(rule)


class AttachmentUpdate(Body):
    """Who opens the volume: at least `host`; `mountpoint` and `mode` count too."""

    envelope = "attachment", ""
    strict_since = Version(3, 0)

    connector = fields.Dict(keys=fields.String(), required=True, validate=validate.Length(min=1))


@bp.put(
    "/attachments/<id>",
    body=AttachmentUpdate,
    returns=(200, Attachment),
    policy="volume:attachment_update",
    since="3.27",
    on=attachments.get,
)
def update(ctx: Context, attachment: models.Attachment, body: dict[str, Any]) -> Shown:
    """Say who opens a reserved volume, and be told how. 409 if the volume is in an error or open somewhere else."""
    return _full(ctx, external.update(ctx, attachment, body["connector"]))


@bp.action(
    "/attachments/<id>/action",
    "os-complete",
    returns=(204, None),
    policy="volume:attachment_complete",
    since="3.44",
    on=attachments.get,
)
def complete(ctx: Context, attachment: models.Attachment) -> None:
    """Say that the disk is plugged in: the volume is in use."""
    external.complete(ctx, attachment)


@bp.delete(
    "/attachments/<id>",
    returns=(200, AttachmentRef),
    policy="volume:attachment_delete",
    since="3.27",
    on=attachments.get,
    slow=True,
)
def delete(ctx: Context, attachment: models.Attachment) -> list[Shown]:
    """End an attachment; answers those of the volume that remain.

    While a server uses it only a service may do that; for others it is 409 and the way is the compute API.
    """
    return [Shown(row) for row in external.delete(ctx, attachment)]
