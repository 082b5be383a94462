# SPDX-License-Identifier: Apache-2.0
"""/types: the volume types, which clients list before they create."""

from __future__ import annotations

from marshmallow import fields

from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Computed, Schema, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import types
from cinderlite.db import models

bp = Blueprint("types", SERVICE, "Volume types.")


class VolumeType(Schema):
    """A volume type."""

    envelope = "volume_type", "volume_types"
    links_key = "volume_type_links"

    id = fields.String()
    name = fields.String()
    description = fields.String()
    is_public = fields.Boolean()
    access = fields.Boolean(attribute="is_public", data_key="os-volume-type-access:is_public")
    extra_specs = versioned(Computed(lambda _type: {}), policy="volume_extension:access_types_extra_specs")
    qos_specs_id = versioned(Computed(lambda _type: None), policy="volume_extension:access_types_qos_specs_id")


@bp.get("/types", returns=(200, VolumeType), policy="volume_extension:type_get_all")
def index(ctx: Context) -> list[models.VolumeType]:
    """List the volume types that the caller may use."""
    return types.visible(ctx)


@bp.get("/types/default", returns=(200, VolumeType), policy="volume_extension:type_get")
def show_default(ctx: Context) -> models.VolumeType:
    """Show the type of a volume that is created without one."""
    return types.default(ctx)


@bp.get("/types/<id>", returns=(200, VolumeType), policy="volume_extension:type_get", on=types.get)
def show(_ctx: Context, volume_type: models.VolumeType) -> models.VolumeType:
    """Show a volume type."""
    return volume_type
