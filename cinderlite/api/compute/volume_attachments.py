# SPDX-License-Identifier: Apache-2.0
"""/servers/{id}/os-volume_attachments: a volume becomes a disk in a running server, and stops being one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.compute import SERVICE
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, Body, Bool, Id, Schema, versioned
from cinderlite.context import Context
from cinderlite.core import attachments, servers
from cinderlite.db import models
from cinderlite.guests import Server

bp = Blueprint("volume_attachments", SERVICE, "Volumes of a server.")


class Attachment(Schema):
    """A volume on a server, as GET answers it."""

    envelope = "volumeAttachment", "volumeAttachments"

    id = versioned(fields.String(attribute="volume_id"), until="2.88")
    volumeId = fields.String(attribute="volume_id")  # noqa: N815 -- the API's name
    serverId = fields.String(attribute="server_id")  # noqa: N815
    device = fields.String()
    tag = versioned(fields.String(), since="2.70")
    delete_on_termination = versioned(fields.Boolean(), since="2.79")
    attachment_id = versioned(fields.String(attribute="id"), since="2.89")
    bdm_uuid = versioned(fields.String(attribute="id"), since="2.89")

    def write(self, row: Any) -> dict[str, Any]:
        """A device that is not known is left out, as Nova does."""
        written = super().write(row)
        if written["device"] is None:
            del written["device"]
        return written


class Attached(Schema):
    """A volume on a server, as POST answers it: with `id` and `device` at every version, with fewer other keys."""

    envelope = "volumeAttachment", ""

    id = fields.String(attribute="volume_id")
    volumeId = fields.String(attribute="volume_id")  # noqa: N815
    serverId = fields.String(attribute="server_id")  # noqa: N815
    device = fields.String()
    tag = versioned(fields.String(), since="2.70")
    delete_on_termination = versioned(fields.Boolean(), since="2.79")


def _device(text: str) -> None:
    """Nova's form of a device name; the guest chooses the name itself, whatever is asked for."""
    if not re.fullmatch(r"/dev/x?[a-z]?d?[a-z]+[0-9]*", text):
        raise marshmallow.ValidationError(f"'{text[:255]}' does not match the form of a device name")


def _tag(text: str) -> None:
    if not 1 <= len(text) <= 60 or "/" in text or "," in text:
        raise marshmallow.ValidationError("a tag has 1 to 60 characters and neither '/' nor ','")


class Attach(Body):
    """Which volume to attach."""

    envelope = "volumeAttachment", ""
    strict_since = Version(2, 1)

    volumeId = Id(required=True)  # noqa: N815
    device = fields.String(allow_none=True, validate=_device)
    tag = versioned(fields.String(validate=_tag), since="2.49")
    delete_on_termination = versioned(Bool(), since="2.79")


class Update(Body):
    """What is to become of an attachment, by its volume; what else it has may stand there as it is."""

    envelope = "volumeAttachment", ""
    strict_since = Version(2, 1)

    volumeId = Id(required=True)  # noqa: N815
    id = versioned(Id(), since="2.85")
    serverId = versioned(Id(), since="2.85")  # noqa: N815
    device = versioned(fields.String(allow_none=True, validate=_device), since="2.85")
    tag = versioned(fields.String(validate=_tag), since="2.85")
    delete_on_termination = versioned(Bool(), since="2.85")


PATH = "/servers/<server_id>/os-volume_attachments"
#: Since when a volume that several servers may have can be attached.
SHARED = Version(2, 60)
#: Since when PUT changes an attachment; before it only puts another volume in its place.
CHANGES = Version(2, 85)
_POLICY = "os_compute_api:os-volumes-attachments:"


@bp.get(PATH, returns=(200, Attachment), policy=_POLICY + "index", on={"server_id": servers.owned})
def index(ctx: Context, server: Server, query: Mapping[str, str]) -> list[models.Attachment]:
    """List the volumes of a server, oldest first; takes limit (0 is none) and offset."""
    paging.refuse_others(query, {"limit", "offset"})
    rows = attachments.of_server(ctx, server)
    start = paging.number(query, "offset") or 0
    most = min(paging.number(query, "limit") or ctx.settings.max_page, ctx.settings.max_page)
    return rows[start : start + most]


@bp.get(PATH + "/<volume_id>", returns=(200, Attachment), policy=_POLICY + "show", on={"server_id": servers.owned})
def show(ctx: Context, server: Server, volume_id: str) -> models.Attachment:
    """Show a volume of a server; 404 if it is not attached to it."""
    return attachments.on_server(ctx, server, volume_id)


@bp.post(PATH, body=Attach, returns=(200, Attached), policy=_POLICY + "create", on={"server_id": servers.owned})
def create(ctx: Context, server: Server, body: dict[str, Any]) -> models.Attachment:
    """Attach a volume to a running server.

    By the time of the answer the disk is plugged in. The guest finds it by the volume's id, as the disk's serial
    number; a wish for a device name is not honoured, but one that another volume of the server has is refused. Answers
    400 for a volume that is not available, and below 2.60 for one that several servers may have; 403 for more volumes
    than a server may have; 409 when the server has no room for another disk or is in no state to get one; 503 when Ceph
    or the server's monitor does not answer.
    """
    return attachments.attach(
        ctx,
        server,
        body["volumeId"],
        device=body.get("device"),
        tag=body.get("tag"),
        delete_on_termination=body.get("delete_on_termination", False),
        multiattach=VIEW.get().version >= SHARED,
    )


#: Key of a change → what it must be the same as.
_FIXED = {"id": "volume_id", "serverId": "server_id", "device": "device", "tag": "tag"}


@bp.put(
    PATH + "/<volume_id>",
    body=Update,
    returns=(202, None),
    policy=_POLICY + "update",
    on={"server_id": servers.owned},
)
def update(ctx: Context, server: Server, volume_id: str, body: dict[str, Any]) -> None:
    """Say whether a volume is deleted when its server ends; nothing else of an attachment can be changed.

    Below 2.85, and with another volumeId than the path's, this is the request to put that other volume in the place of
    this one, which Nova is sent by Cinder: answered as Nova answers whoever else asks (409, or why it would not go),
    since a volume in use is moved without that.
    """
    changes = VIEW.get().version >= CHANGES
    swaps = not changes or body["volumeId"] != volume_id
    if swaps and not VIEW.get().allows(_POLICY + "swap"):
        raise errors.Forbidden(_POLICY + "swap")
    if changes:
        attachment = attachments.on_server(ctx, server, volume_id)
        for key, attribute in _FIXED.items():
            if key in body and body[key] != getattr(attachment, attribute):
                raise errors.BadRequest(f"The {key} property is not mutable")
        if "delete_on_termination" in body:
            attachments.keep_or_delete(ctx, attachment, delete_on_termination=body["delete_on_termination"])
    if swaps:
        attachments.swap(ctx, server, volume_id, body["volumeId"])


@bp.delete(PATH + "/<volume_id>", returns=(202, None), policy=_POLICY + "delete", on={"server_id": servers.owned})
def delete(ctx: Context, server: Server, volume_id: str) -> None:
    """Detach a volume from a server.

    Usually the guest has let go by the time of the answer. One that has not (it is paused, or has no operating
    system yet) leaves the volume `detaching`, with a user message; it is detached as soon as the guest lets go.
    """
    attachments.detach(ctx, attachments.on_server(ctx, server, volume_id))
