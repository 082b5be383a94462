# SPDX-License-Identifier: Apache-2.0
"""Transfers: a volume offered to whoever knows the key, with or without its snapshots.

Only rows change hands, each time in a single commit; the image is moved after that, and only if it is in the former
owner's namespace (doc/decisions/0015). What a newcomer gets wrong: an offer is only good while the volume still belongs
to the project that made it and awaits a transfer; a key from an earlier offer must never open a later one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import cephx_users, quotas, volumes
from cinderlite.db import models

AWAITING = "awaiting-transfer"
#: Random bytes in a key and in its salt.
_BYTES = 16


def visible(ctx: Context, *, all_projects: bool = False) -> Select[models.Transfer]:
    """The open offers that the caller's project made; an administrator asks for all projects explicitly."""
    query = select(models.Transfer).where(models.Transfer.deleted.is_(False))
    if not (ctx.is_admin and all_projects):
        query = query.where(models.Transfer.source_project_id == ctx.project_id)
    return query


def get(ctx: Context, transfer_id: str) -> models.Transfer:
    """An open offer of the caller's project. Raises TransferNotFound, also for another project's."""
    found = offered(ctx, transfer_id)
    if not ctx.is_admin and found.source_project_id != ctx.project_id:
        raise errors.TransferNotFound(transfer_id)
    return found


def offered(ctx: Context, transfer_id: str) -> models.Transfer:
    """An open offer, whoever made it: for those who may have the key. Raises TransferNotFound."""
    with ctx.world.db.read() as session:
        return _open(session, transfer_id)


def _open(session: Session, transfer_id: str) -> models.Transfer:
    query = select(models.Transfer).where(models.Transfer.id == transfer_id, models.Transfer.deleted.is_(False))
    found = session.scalars(query).one_or_none()
    if found is None:
        raise errors.TransferNotFound(transfer_id)
    return found


def create(
    ctx: Context,
    volume: models.Volume,
    *,
    name: str | None = None,
    no_snapshots: bool = False,
    encrypted: bool = False,
) -> tuple[models.Transfer, str]:
    """Offer a volume, an encrypted one only if that is allowed; the offer, and the key that nobody sees again.

    Raises InvalidVolume or InvalidSnapshot when its state does not allow it.
    """
    if volume.namespace:
        _refuse_shared(ctx, volume)
    salt, key = secrets.token_hex(_BYTES), secrets.token_hex(_BYTES)
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        _refuse_offer(current, no_snapshots=no_snapshots, encrypted=encrypted)
        volumes.refuse_source(session, current.id)  # What is written to it later is not the maker's to have.
        if not no_snapshots:
            _snapshots(session, current)
        elif current.namespace:
            _refuse_parting(session, current)
        volumes.end_transfers(session, current.id)
        transfer = models.Transfer(
            id=models.new_id(),
            volume_id=current.id,
            name=name,
            salt=salt,
            digest=_digest(salt, key),
            source_project_id=current.project_id,
            no_snapshots=no_snapshots,
        )
        session.add(transfer)
        current.status, current.updated_at = AWAITING, models.utcnow()
    return transfer, key


def _refuse_offer(volume: models.Volume, *, no_snapshots: bool, encrypted: bool) -> None:
    if volume.status != "available" or volume.busy:
        raise errors.InvalidVolume("status must be available")
    if volume.group_id is not None:
        raise errors.InvalidVolume("a volume in a group cannot be transferred")
    if volume.encryption_key_id is None:
        return
    if not encrypted:
        raise errors.InvalidVolume("transferring encrypted volume is not supported")
    if no_snapshots:
        raise errors.InvalidVolume("transferring an encrypted volume without its snapshots is not supported")


def _refuse_shared(ctx: Context, volume: models.Volume) -> None:
    """Raise InvalidVolume for an image that others share: they stay, and would read it in another's namespace."""
    ctx.world.cluster_of(volume).check()
    if ctx.world.cluster_of(volume).portrait(volume.image).children:
        raise errors.InvalidVolume("volumes that were made from it share its data; it can go when they are deleted")


def _refuse_parting(session: Session, volume: models.Volume) -> None:
    """Raise InvalidVolume for snapshots that are to stay with a project, when they must leave its namespace."""
    if session.scalar(select(models.Snapshot.id).where(models.Snapshot.volume_id == volume.id).limit(1)) is not None:
        raise errors.InvalidVolume("its snapshots are in its image and cannot stay when that goes to another namespace")


def _snapshots(session: Session, volume: models.Volume) -> Sequence[models.Snapshot]:
    """What goes along of a volume's snapshots, held until the transaction ends. Raises InvalidSnapshot.

    Those that stayed with another project in an earlier transfer stay there.
    """
    table = models.Snapshot
    query = select(table).where(table.volume_id == volume.id, table.project_id == volume.project_id)
    found = session.scalars(query.with_for_update()).all()
    for snapshot in found:
        if snapshot.status != "available" or snapshot.busy:
            raise errors.InvalidSnapshot(f"snapshot: {snapshot.id} status must be available")
        if snapshot.group_snapshot_id is not None:
            raise errors.InvalidSnapshot(f"snapshot: {snapshot.id} must not be part of a group")
    return found


def _digest(salt: str, key: str) -> str:
    # The key is 128 random bits: there is nothing to guess that a slow digest would protect.
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()


def accept(ctx: Context, transfer: models.Transfer, key: str) -> models.Transfer:
    """Make the offered volume the caller's.

    One that is in the namespace of the project that offers it is moved after that, and available when it was.

    Raises InvalidAuthKey, OverQuota, InvalidVolume when the caller's project may not use its type or it is not offered
    any more, TransferNotFound when somebody was quicker.
    """
    if not hmac.compare_digest(transfer.digest, _digest(transfer.salt, key)):
        raise errors.InvalidAuthKey(transfer.id)
    with ctx.world.db.read() as session:
        offered_volume = session.get_one(models.Volume, transfer.volume_id)
    if _moves_to(ctx, offered_volume) is not None:
        _refuse_shared(ctx, offered_volume)
        cephx_users.refuse_open_clones(ctx.world, offered_volume)
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        volume = volumes.lock(session, transfer.volume_id)
        current = _open(session, transfer.id)
        if volume.status != AWAITING or volume.busy or volume.project_id != current.source_project_id:
            raise errors.InvalidVolume(f"volume {volume.id} does not await this transfer")
        along = () if current.no_snapshots else _snapshots(session, volume)
        _admit(ctx, session, volume, along)
        rows: list[models.Volume | models.Snapshot] = [volume, *along]
        for row in rows:
            row.project_id, row.user_id, row.updated_at = ctx.project_id, ctx.user_id, models.utcnow()
        owner = _begin_move(ctx, session, volume)
        if owner is None:
            volume.status = "available"
        current.destination_project_id, current.accepted = ctx.project_id, True
        volumes.end_transfers(session, volume.id)
    if owner is not None:
        volumes.LIFECYCLE.run(ctx.world, volume.id, owner)
    return current


def _moves_to(ctx: Context, volume: models.Volume) -> str | None:
    """The namespace that a volume's image must go to if it becomes the caller's; None if it can stay where it is."""
    namespace = ctx.world.backend(volume.host).namespace_for(ctx.project_id)
    return None if volume.namespace in ("", namespace) else namespace


def _begin_move(ctx: Context, session: Session, volume: models.Volume) -> str | None:
    """Begin to move the image to the caller's namespace; the lease, None if it can stay where it is."""
    namespace = _moves_to(ctx, volume)
    if namespace is None:
        return None
    volumes.refuse_source(session, volume.id)
    volumes.refuse_work_beside(session, volume.id)
    session.flush()
    return volumes.LIFECYCLE.begin(
        session, volume.id, "hand_over", ctx.settings.lease, ctx.request_id, namespace=namespace
    )


def _admit(ctx: Context, session: Session, volume: models.Volume, along: Sequence[models.Snapshot]) -> None:
    """Refuse what the accepting project may not have; what it has already costs it nothing."""
    if volume.project_id == ctx.project_id:
        return
    kind = session.get_one(models.VolumeType, volume.volume_type_id)
    access = models.TypeAccess.volume_type_id == kind.id, models.TypeAccess.project_id == ctx.project_id
    if not kind.is_public and session.scalar(select(models.TypeAccess.project_id).where(*access)) is None:
        raise errors.InvalidVolume(f"its type {kind.name} may not be used by this project")
    if volume.consumes_quota:
        sizes = [snapshot.volume_size for snapshot in along if snapshot.consumes_quota]
        quotas.admit_transfer(session, ctx.settings, ctx.project_id, kind, [volume.size, *sizes])


def delete(ctx: Context, transfer: models.Transfer) -> None:
    """Take an offer back; its volume is available again, unless somebody has set its status since."""
    with ctx.world.db.write() as session:
        volume = volumes.lock(session, transfer.volume_id)
        _open(session, transfer.id)
        if volume.status == AWAITING and not volume.busy:
            volume.status, volume.updated_at = "available", models.utcnow()
        volumes.end_transfers(session, volume.id)
