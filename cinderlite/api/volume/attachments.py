# SPDX-License-Identifier: Apache-2.0
"""/attachments: the attachments as Cinder shows them, one view of the rows that the compute API makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields
from sqlalchemy import func

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Computed, Schema, time_text
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import attachments
from cinderlite.db import models

bp = Blueprint("attachments", SERVICE, "Attachments of volumes to servers.")

_A = models.Attachment
LISTING = Listing(
    id=_A.id,
    keys={
        "id": _A.id, "created_at": _A.created_at, "status": _A.status, "attach_status": _A.status,
        "volume_id": _A.volume_id, "instance_id": _A.server_id,
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
)  # fmt: skip


class AttachmentRef(Schema):
    """An attachment in the short list."""

    envelope = "attachment", "attachments"
    links_key = "attachments_links"

    id = fields.String()
    status = fields.String()
    instance = fields.String(attribute="server_id")
    volume_id = fields.String()


class Attachment(AttachmentRef):
    """An attachment in full. Absent times are empty strings here, as Cinder writes them."""

    attached_at = Computed(lambda row: time_text(row.attached_at) or "")
    detached_at = Computed(lambda _row: "")
    attach_mode = fields.String(attribute="mode")
    # The keys that open the image never leave through here: the service itself plugs the disk in.
    connection_info = Computed(lambda _row: {})


def _page(ctx: Context, query: Mapping[str, str]) -> Page:
    everybody = ctx.is_admin and paging.flag(query, "all_tenants")
    base = attachments.visible(ctx, all_projects=everybody).order_by(None)
    with ctx.world.db.read() as session:
        found = paging.page(
            session, LISTING, base, query, version=VIEW.get().version, is_admin=ctx.is_admin,
            most=ctx.settings.max_page,
        )  # fmt: skip
    return Page(found.items)


@bp.get("/attachments", returns=(200, AttachmentRef), policy="volume:attachment_get_all", since="3.27")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List attachments; filters volume_id, instance_id, status, attach_status."""
    return _page(ctx, query)


@bp.get("/attachments/detail", returns=(200, Attachment), policy="volume:attachment_get_all", since="3.27")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List attachments in full."""
    return _page(ctx, query)


@bp.get(
    "/attachments/<id>", returns=(200, Attachment), policy="volume:attachment_get", since="3.27", on=attachments.get
)
def show(_ctx: Context, attachment: models.Attachment) -> Any:
    """Show an attachment."""
    return attachment
