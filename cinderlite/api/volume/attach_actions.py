# SPDX-License-Identifier: Apache-2.0
"""/volumes/<id>/action: the attach actions that are older than /attachments, for those who plug the disk in themselves.

They only keep the record of who holds a volume. A disk that this service plugged in comes out by the compute API.
"""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate, validates_schema
from marshmallow.exceptions import ValidationError

from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import ActionBody, Bool, Id
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import external, volumes
from cinderlite.db import models

bp = Blueprint("attach_actions", SERVICE, "Attach actions on volumes.")

RULE = "/volumes/<id>/action"
_POLICY = "volume_extension:volume_actions:"


@bp.action(RULE, "os-reserve", policy=_POLICY + "reserve", on=volumes.get)
def reserve(ctx: Context, volume: models.Volume) -> None:
    """Mark an available volume as about to be attached."""
    external.reserve(ctx, volume)


@bp.action(RULE, "os-unreserve", policy=_POLICY + "unreserve", on=volumes.get)
def unreserve(ctx: Context, volume: models.Volume) -> None:
    """Take that mark back; nothing for a volume without it."""
    external.unreserve(ctx, volume)


@bp.action(RULE, "os-begin_detaching", policy=_POLICY + "begin_detaching", on=volumes.get)
def begin_detaching(ctx: Context, volume: models.Volume) -> None:
    """Mark a volume in use as about to be detached."""
    external.begin_detaching(ctx, volume)


@bp.action(RULE, "os-roll_detaching", policy=_POLICY + "roll_detaching", on=volumes.get)
def roll_detaching(ctx: Context, volume: models.Volume) -> None:
    """Take that mark back; nothing for a volume without it."""
    external.roll_detaching(ctx, volume)


class Attach(ActionBody):
    """To which server or host, under which device name, and whether to write."""

    mountpoint = fields.String(required=True, validate=validate.Length(min=1, max=255))
    instance_uuid = Id()
    host_name = fields.String(validate=validate.Length(max=255))
    mode = fields.String(validate=validate.OneOf(("rw", "ro")), load_default="rw")

    @validates_schema(skip_on_field_errors=True)
    def _somewhere(self, data: dict[str, Any], **_kwargs: Any) -> None:
        if not data.get("instance_uuid") and not data.get("host_name"):
            raise ValidationError("'instance_uuid' or 'host_name' is a required property")


@bp.action(RULE, "os-attach", body=Attach, policy=_POLICY + "attach", on=volumes.get)
def attach(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Note that somebody else has attached a volume to a server or to a host."""
    external.attach(
        ctx,
        volume,
        server_id=body.get("instance_uuid"),
        host=body.get("host_name"),
        device=body["mountpoint"],
        mode=body["mode"],
    )


class Detach(ActionBody):
    """Which attachment, if there are several."""

    nullable = True

    attachment_id = Id(allow_none=True)


@bp.action(RULE, "os-detach", body=Detach, policy=_POLICY + "detach", on=volumes.get, slow=True)
def detach(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Note that somebody else has detached a volume; 409 for one that this service plugged in."""
    external.detach(ctx, volume, body.get("attachment_id"))


#: What a host says of itself; a text is taken for one that says nothing, as Cinder does.
_CONNECTOR = (dict, str)


def _connector(*, nullable: bool) -> fields.Raw:
    def check(value: Any) -> None:
        if not isinstance(value, _CONNECTOR):
            raise ValidationError(f"{value!r} is not of type 'object'")

    # Nothing validates a null but this.
    return fields.Raw(required=True, allow_none=nullable, validate=check)


class Initialize(ActionBody):
    """Who opens the volume."""

    connector = _connector(nullable=False)


@bp.action(
    RULE,
    "os-initialize_connection",
    body=Initialize,
    returns=(200, None),
    policy=_POLICY + "initialize_connection",
    on=volumes.get,
)
def initialize_connection(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> dict[str, Any]:
    """Say how a volume's image is opened: its name, the monitors, the cephx user, never the key."""
    connector = body["connector"]
    return {"connection_info": external.initialize(ctx, volume, connector if isinstance(connector, dict) else {})}


class Terminate(ActionBody):
    """Who had opened the volume."""

    connector = _connector(nullable=True)


@bp.action(RULE, "os-terminate_connection", body=Terminate, policy=_POLICY + "terminate_connection", on=volumes.get)
def terminate_connection(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Say that a volume is not open any more; 409 for one that this service plugged in."""
    del body
    external.terminate(ctx, volume)


class ForceDetach(ActionBody):
    """Which attachment, if there are several."""

    attachment_id = Id(allow_none=True)
    connector = fields.Raw(allow_none=True)


@bp.action(
    RULE,
    "os-force_detach",
    body=ForceDetach,
    policy="volume_extension:volume_admin_actions:force_detach",
    on=volumes.get,
    slow=True,
)
def force_detach(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Take a volume from a server that is dead, hung or lost, once Ceph takes nothing more from that server's client.

    The server cannot write to it after that, whatever becomes of it, until it gets the volume anew. One that answers is
    asked for the disk first. 409 if the volume has several users and nobody knows which of them the server is.
    """
    external.force_detach(ctx, volume, body.get("attachment_id"))


class ReadonlyFlag(ActionBody):
    """Whether only reading is allowed."""

    readonly = Bool(required=True)


@bp.action(RULE, "os-update_readonly_flag", body=ReadonlyFlag, policy="volume:update_readonly_flag", on=volumes.get)
def update_readonly_flag(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Allow only reading of an available volume, or writing again; its metadata show that as `readonly`."""
    external.set_readonly(ctx, volume, readonly=body["readonly"])
