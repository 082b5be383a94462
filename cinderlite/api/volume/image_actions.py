# SPDX-License-Identifier: Apache-2.0
"""/volumes/<id>/action: what concerns the image that a volume was made from."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, ActionBody, Bool, Computed, Id, Metadata, Schema, Time, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.api.volume.types import VolumeType
from cinderlite.context import Context
from cinderlite.core import image_metadata, images, volumes
from cinderlite.db import models

bp = Blueprint("image_actions", SERVICE, "Images and volumes: actions on volumes that concern images.")

RULE = "/volumes/<id>/action"
_POLICY = "volume_extension:volume_image_metadata"
PUBLIC = "volume_extension:volume_actions:upload_public"
RESERVED = "volume:reimage_reserved"
#: Since when an upload says who may see the image, and whether it may be removed.
UPLOAD_PARAMETERS = Version(3, 1)


class SetBootable(ActionBody):
    """Whether a server can boot from the volume."""

    bootable = Bool(required=True)


@bp.action(RULE, "os-set_bootable", body=SetBootable, returns=(200, None), policy="volume:update", on=volumes.get)
def set_bootable(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Say whether a server can boot from a volume."""
    volumes.update(ctx, volume, bootable=body["bootable"])


class SetImageMetadata(ActionBody):
    """Keys to add or to change."""

    metadata = Metadata(required=True)


@bp.action(
    RULE, "os-set_image_metadata", body=SetImageMetadata, returns=(200, None), policy=f"{_POLICY}:set", on=volumes.get
)
def set_metadata(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> dict[str, Any]:
    """Add to what is known of a volume's image and answer all of it."""
    return {"metadata": image_metadata.add(ctx, volume, body["metadata"])}


class UnsetImageMetadata(ActionBody):
    """The key to remove."""

    key = fields.String(required=True, validate=validate.Length(1, 255))


@bp.action(
    RULE,
    "os-unset_image_metadata",
    body=UnsetImageMetadata,
    returns=(200, None),
    policy=f"{_POLICY}:remove",
    on=volumes.get,
)
def unset_metadata(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Remove a key of what is known of a volume's image."""
    image_metadata.remove(ctx, volume, body["key"])


@bp.action(RULE, "os-show_image_metadata", returns=(200, None), policy=f"{_POLICY}:show", on=volumes.get)
def show_metadata(_ctx: Context, volume: models.Volume) -> dict[str, Any]:
    """Show what is known of the image that a volume was made from."""
    return {"metadata": image_metadata.shown(volume)}


class Upload(ActionBody):
    """What the image is to be."""

    image_name = fields.String(required=True, validate=validate.Length(1, 255))
    force = Bool()
    disk_format = fields.String(validate=validate.OneOf(("raw", "vmdk", "vdi", "qcow2", "vhd", "vhdx", "ploop")))
    container_format = fields.String(validate=validate.Length(0, 255))
    visibility = versioned(
        fields.String(validate=validate.OneOf(("community", "public", "private", "shared"))), since="3.1"
    )
    protected = versioned(Bool(), since="3.1")


class Uploading(Schema):
    """The image that is being made, and the volume it is made of."""

    envelope = "os-volume_upload_image", ""

    id = fields.String(attribute="volume.id")
    updated_at = Time(attribute="volume.updated_at")
    status = fields.String(attribute="volume.status")
    display_description = fields.String(attribute="volume.description")
    size = fields.Integer(attribute="volume.size")
    volume_type = Computed(lambda made: VolumeType.here().write(made.volume.volume_type))
    image_id = fields.String(attribute="image.id")
    container_format = Computed(lambda made: made.image.fields.get("container_format"))
    disk_format = fields.String(attribute="image.disk_format")
    image_name = Computed(lambda made: made.image.fields.get("name"))
    visibility = versioned(Computed(lambda made: made.image.fields.get("visibility")), since="3.1")
    protected = versioned(Computed(lambda made: made.image.fields.get("protected")), since="3.1")


@bp.action(
    RULE,
    "os-volume_upload_image",
    body=Upload,
    returns=(202, Uploading),
    policy="volume_extension:volume_actions:upload_image",
    on=volumes.get,
    slow=True,
)
def upload_image(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> images.Uploading:
    """Make an image of a volume, converted to `disk_format`; one in use with `force`, as it is at this moment.

    The volume is `uploading` until all data are there. If that fails the image is removed and the volume is what it
    was, and a message says why.
    """
    if body.get("visibility") == "public" and not VIEW.get().allows(PUBLIC):
        raise errors.Forbidden(PUBLIC)
    if VIEW.get().version >= UPLOAD_PARAMETERS:
        body = {"visibility": "private", "protected": False} | body
    return images.upload(ctx, volume, **body)


class Reimage(ActionBody):
    """The image to write over the volume, and whether that may be while it is reserved."""

    image_id = Id(required=True)
    reimage_reserved = Bool()


@bp.action(RULE, "os-reimage", body=Reimage, policy="volume:reimage", on=volumes.get, since="3.68", slow=True)
def reimage(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Write an image over a volume that is available or in error, or reserved if `reimage_reserved` says so."""
    if volume.status == "reserved" and not VIEW.get().allows(RESERVED):
        raise errors.Forbidden(RESERVED)
    images.reimage(ctx, volume, body["image_id"], reserved=body.get("reimage_reserved", False))
