# SPDX-License-Identifier: Apache-2.0
"""How the volumes of a type are to be encrypted, how one volume is, and its key.

An image of an encrypted volume is as Cinder's are: a LUKS header, and behind it all the GiB that were asked for. A
backup has the header of its volume, and a key of its own that holds the same secret. A clone gets a secret of its own,
and its header is sealed anew with that; what is behind it is encrypted as in its source. What a newcomer gets wrong:
Ceph never sees plain data, nor do we. Only QEMU decrypts.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import sqlalchemy
from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import records, types
from cinderlite.db import models
from cinderlite.db.session import refusing
from cinderlite.keys import KeyStore, luks

LOG = logging.getLogger(__name__)

GIB = 1024**3
#: Bytes of a secret. Its hexadecimal digits are the passphrase, as they are for a Nova.
_SECRET = 32


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


def is_alike(session: Session, one: str, other: str) -> bool:
    """Whether volumes of two types are encrypted in the same way, or neither is."""
    return _way(session, one) == _way(session, other)


def _way(session: Session, type_id: str) -> tuple[object, ...] | None:
    row = _find(session, type_id)
    if row is None:
        return None
    bits = row.key_size or luks.KEY_BITS
    return row.provider in luks.PROVIDERS or row.provider, row.cipher or luks.CIPHER, luks.KEY_BYTES.get(bits, bits)


def plan(
    ctx: Context, session: Session, kind: models.VolumeType, like: str | None, like_type: str | None, *, anew: bool
) -> dict[str, Any]:
    """What the intent of a new volume says of its encryption; nothing if its type, of `types.for_new_volume`, has none.

    `like` is the key of what it is made from, and `like_type` the type of that; `anew` if there need not be one.
    Raises InvalidInput or InvalidVolumeType if it cannot be had.
    """
    row = kind.encryption
    if row is None:
        if like is not None:
            raise errors.InvalidInput(f"Its source is encrypted, and volumes of type {kind.name} are not.")
        return {}
    if ctx.world.keys is None:
        raise errors.InvalidInput(
            f"Volumes of type {kind.name} are to be encrypted, which this service cannot do without a key store."
        )
    luks.refuse(row.provider, row.cipher, row.key_size, row.control_location)
    if types.is_multiattach(kind):
        raise errors.InvalidInput("Multiattach cannot be used with an encrypted volume.")
    if like is None and not anew:
        raise errors.InvalidInput(
            f"Volumes of type {kind.name} are encrypted, and what is not cannot become one; copy it inside a server."
        )
    if like is not None and like_type is not None and not is_alike(session, kind.id, like_type):
        raise errors.InvalidInput(f"Its source is encrypted in another way than volumes of type {kind.name}.")
    return {"encryption": {"like": like, "key_bytes": luks.KEY_BYTES[row.key_size or luks.KEY_BITS]}}


def _keys(world: World) -> KeyStore:
    if world.keys is None:
        raise errors.KeyStoreUnavailable("this service has no key store")
    return world.keys


def give_key(world: World, row: models.Volume | models.Backup, like: str | None) -> None:
    """Note the key of a new volume or backup, with the secret of another key or a new one, unless it has its own.

    At once, and not when the step settles: one that fails leaves a row, which is deleted with its key.
    """
    if row.encryption_key_id is not None:
        return
    keys, table = _keys(world), type(row)

    def note(session: Session, key_id: str) -> None:
        noted = session.execute(
            sqlalchemy.update(table)
            .where(table.id == row.id, table.lease_owner == row.lease_owner)
            .values(encryption_key_id=key_id)
            .execution_options(synchronize_session=False)
        )
        if noted.rowcount != 1:  # type: ignore[attr-defined]
            raise errors.Superseded

    row.encryption_key_id = keys.keep(secrets.token_bytes(_SECRET) if like is None else keys.secret(like), note)


def forget_key(world: World, row: models.Volume | models.Backup) -> None:
    """Destroy the key of a volume or backup that is gone: what is left of it in Ceph opens for nobody any more."""
    if row.encryption_key_id is None:
        return
    records.forget(world, row)  # Its record has the key, too, wrapped as it is in the database.
    if world.keys is None:
        LOG.warning("there is no key store to remove key %s from", row.encryption_key_id)
        return
    world.keys.forget(row.encryption_key_id)


def secret(world: World, key_id: str) -> bytes:
    """The secret of a key. Raises KeyNotFound, KeyStoreUnavailable."""
    return _keys(world).secret(key_id)


def passphrase(world: World, volume: models.Volume) -> str | None:
    """What opens a volume; None if it is not encrypted. Raises KeyNotFound, KeyStoreUnavailable."""
    if volume.encryption_key_id is None:
        return None
    return secret(world, volume.encryption_key_id).hex()


def seal(world: World, volume: models.Volume, like: str | None) -> None:
    """Have an image whose header came from elsewhere, where the secret of key `like` opens it, opened by its volume's.

    Done too if it is already, or if there is nothing to open. In Ceph that is one operation, so that always one of the
    two opens it. Raises KeyNotFound when neither does.
    """
    words = passphrase(world, volume)
    if words is None or like is None:
        return
    cluster = world.cluster_of(volume)
    with cluster.opened(volume.image) as image:
        start = image.read(0, luks.DATA_OFFSET)
    if luks.opens(start, words.encode()):
        return
    try:
        sealed = luks.resealed(start, _keys(world).secret(like).hex().encode(), words.encode())
    except luks.NotOpened as error:
        raise errors.KeyNotFound(like) from error
    cluster.write_head(volume.image, sealed)


def image_bytes(volume: models.Volume, size: int | None = None) -> int:
    """How big the image of a volume is, or would be if the volume had `size` GiB."""
    return (volume.size if size is None else size) * GIB + header_bytes(volume)


def header_bytes(volume: models.Volume) -> int:
    """What an image has beyond its volume's GiB."""
    return luks.DATA_OFFSET if volume.encrypted else 0


def header(world: World, volume: models.Volume) -> tuple[bytes, str] | None:
    """What the image of a new volume is to begin with and what opens that; None if it is not encrypted.

    Each is another one. Raises KeyNotFound, KeyStoreUnavailable.
    """
    words = passphrase(world, volume)
    if words is None or volume.intent is None:
        return None
    return luks.header(words.encode(), volume.intent["encryption"]["key_bytes"]), words
