# SPDX-License-Identifier: Apache-2.0
"""/types/<id>/encryption and /volumes/<id>/encryption: how volumes are encrypted.

What a newcomer gets wrong: a type has one encryption at most, so the id in the path of a change says nothing more;
clients write any word there, and it is not looked at.
"""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api.rest import Answer, Blueprint
from cinderlite.api.schema import Computed, Schema, StrictBody, Time, Whole
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import encryption, types, volumes
from cinderlite.db import models

bp = Blueprint("encryption", SERVICE, "Encryption of volume types and volumes.")

_TEXT = validate.Length(max=255)
_PLACES = validate.OneOf(["front-end", "back-end"])


class EncryptionCreated(Schema):
    """How the volumes of a type are encrypted, as its creation answers it."""

    envelope = "encryption", ""

    volume_type_id = fields.String()
    encryption_id = fields.String(attribute="id")
    provider = fields.String()
    control_location = fields.String()
    cipher = fields.String()
    key_size = fields.Integer()


class Encryption(EncryptionCreated):
    """How the volumes of a type are encrypted."""

    envelope = "", ""

    created_at = Time()
    updated_at = Time()
    deleted = Computed(lambda _row: False)
    deleted_at = Computed(lambda _row: None)


class EncryptionUpdate(StrictBody):
    """What is to change of how volumes are encrypted: by what, where, with which cipher and key of how many bits."""

    envelope = "encryption", ""

    provider = fields.String(validate=_TEXT)
    control_location = fields.String(validate=_PLACES)
    cipher = fields.String(allow_none=True, validate=_TEXT)
    key_size = Whole(allow_none=True)


class EncryptionCreate(EncryptionUpdate):
    """How volumes are to be encrypted: by what, where, with which cipher and key of how many bits."""

    provider = fields.String(required=True, validate=_TEXT)
    control_location = fields.String(required=True, validate=_PLACES)


def _shown(ctx: Context, kind: models.VolumeType) -> dict[str, Any]:
    row = encryption.of_type(ctx, kind.id)
    return Encryption.here().write(row) if row else {}


@bp.get("/types/<id>/encryption", policy="volume_extension:volume_type_encryption:get", on=types.get)
def show(ctx: Context, kind: models.VolumeType) -> dict[str, Any]:
    """Show how the volumes of a type are encrypted; nothing if they are not."""
    return _shown(ctx, kind)


@bp.post(
    "/types/<id>/encryption",
    body=EncryptionCreate,
    returns=(200, EncryptionCreated),
    policy="volume_extension:volume_type_encryption:create",
    on=types.get,
)
def create(ctx: Context, kind: models.VolumeType, body: dict[str, Any]) -> models.TypeEncryption:
    """Have the volumes of a type encrypted; 400 if they are already, or while a volume has the type."""
    return encryption.create(ctx, kind, **body)


@bp.get("/types/<id>/encryption/<key>", policy="volume_extension:volume_type_encryption:get", on=types.get)
def show_key(ctx: Context, kind: models.VolumeType, key: str) -> dict[str, Any]:
    """Show one thing about how the volumes of a type are encrypted."""
    shown = _shown(ctx, kind)
    if key not in shown:
        raise errors.VolumeTypeEncryptionNotFound(kind.id)
    return {key: shown[key]}


@bp.put(
    "/types/<id>/encryption/<encryption_id>",
    body=EncryptionUpdate,
    policy="volume_extension:volume_type_encryption:update",
    on=types.get,
)
def update(ctx: Context, kind: models.VolumeType, body: dict[str, Any], encryption_id: str) -> dict[str, Any]:
    """Change how the volumes of a type are encrypted, and answer what was sent; 400 while a volume has the type."""
    del encryption_id
    encryption.update(ctx, kind, **body)
    return {"encryption": body}


@bp.delete(
    "/types/<id>/encryption/<encryption_id>",
    returns=(202, None),
    policy="volume_extension:volume_type_encryption:delete",
    on=types.get,
)
def delete(ctx: Context, kind: models.VolumeType, encryption_id: str) -> None:
    """Have the volumes of a type encrypted no more; 400 while a volume has the type."""
    del encryption_id
    encryption.delete(ctx, kind)


@bp.get("/volumes/<id>/encryption", policy="volume_extension:volume_encryption_metadata", on=volumes.get)
def show_of_volume(ctx: Context, volume: models.Volume) -> dict[str, Any]:
    """Show how a volume is encrypted; only `encryption_key_id`, which is null, if it is not."""
    return encryption.of_volume(ctx, volume)


@bp.get("/volumes/<id>/encryption/<key>", policy="volume_extension:volume_encryption_metadata", on=volumes.get)
def show_key_of_volume(ctx: Context, volume: models.Volume, key: str) -> Answer:
    """Show one thing about how a volume is encrypted, as plain text; nothing stands for null."""
    found = encryption.of_volume(ctx, volume)
    if key not in found:
        raise errors.NotFound(f"Volume {volume.id} has no encryption metadata with key {key}.")
    return Answer(text="" if found[key] is None else str(found[key]))
