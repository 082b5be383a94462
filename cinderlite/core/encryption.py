# SPDX-License-Identifier: Apache-2.0
"""How the volumes of a type are to be encrypted, and how one volume is.

What a newcomer gets wrong: this is only written down for those who open the volumes. It must not change while a volume
has the type, or nobody could read that volume any more.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import types
from cinderlite.db import models
from cinderlite.db.session import refusing


def of_type(ctx: Context, type_id: str) -> models.TypeEncryption | None:
    """How volumes of that type are encrypted; None if they are not."""
    with ctx.world.db.read() as session:
        return _find(session, type_id)


def _find(session: Session, type_id: str) -> models.TypeEncryption | None:
    table = models.TypeEncryption
    return session.scalars(select(table).where(table.volume_type_id == type_id)).one_or_none()


def create(ctx: Context, kind: models.VolumeType, **values: Any) -> models.TypeEncryption:
    """Have the volumes of a type encrypted. Raises BadRequest if there are any, VolumeTypeEncryptionExists."""
    row = models.TypeEncryption(id=models.new_id(), volume_type_id=kind.id, **values)
    with refusing(errors.VolumeTypeEncryptionExists(kind.id)), ctx.world.db.write() as session:
        types.lock_unused(session, kind.id)
        session.add(row)
    return row


def update(ctx: Context, kind: models.VolumeType, **changes: Any) -> None:
    """Change how the volumes of a type are encrypted. Raises BadRequest if there are any."""
    with ctx.world.db.write() as session:
        row = _changed(session, kind.id)
        for key, value in changes.items():
            setattr(row, key, value)
        row.updated_at = models.utcnow()


def delete(ctx: Context, kind: models.VolumeType) -> None:
    """Have the volumes of a type encrypted no more. Raises BadRequest if there are any."""
    with ctx.world.db.write() as session:
        session.delete(_changed(session, kind.id))


def _changed(session: Session, type_id: str) -> models.TypeEncryption:
    types.lock_unused(session, type_id)
    row = _find(session, type_id)
    if row is None:
        raise errors.VolumeTypeEncryptionNotFound(type_id)
    return row


def of_volume(ctx: Context, volume: models.Volume) -> dict[str, Any]:
    """What opens an encrypted volume: the key's id, and how its type's volumes are encrypted if they are."""
    row = of_type(ctx, volume.volume_type_id)
    ways = ("control_location", "cipher", "key_size", "provider")
    return {"encryption_key_id": volume.encryption_key_id} | ({key: getattr(row, key) for key in ways} if row else {})
