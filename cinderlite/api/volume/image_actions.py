# SPDX-License-Identifier: Apache-2.0
"""/volumes/<id>/action: what concerns the image that a volume was made from."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import ActionBody, Bool, Metadata
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import image_metadata, volumes
from cinderlite.db import models

bp = Blueprint("image_actions", SERVICE, "Images and volumes: actions on volumes that concern images.")

RULE = "/volumes/<id>/action"
_POLICY = "volume_extension:volume_image_metadata"


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
