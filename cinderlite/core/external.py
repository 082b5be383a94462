# SPDX-License-Identifier: Apache-2.0
"""Attachments that somebody else makes, such as a Nova or a host of its own: this service only keeps the record.

Each change is one transaction under the volume's lock, with no step behind it: nothing here can be left half done.
What a newcomer gets wrong: such a row must never touch a disk that this service plugged in (`managed`), and a row may
only go while nobody has the image open under it, unless the one who opened it (a service) says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import attachments, connections, fencing, holders, volumes
from cinderlite.db import models

#: What Cinder writes for a device that nobody named.
NO_DEVICE = "na"


def _held(session: Session, volume_id: str) -> list[models.Attachment]:
    table = models.Attachment
    return list(session.scalars(select(table).where(table.volume_id == volume_id).order_by(table.created_at, table.id)))


# -- attachments


def create(
    ctx: Context,
    volume: models.Volume,
    *,
    server_id: str | None,
    mode: str | None,
    connector: Mapping[str, Any] | None,
) -> models.Attachment:
    """Reserve a volume for a server; with a connector also say how it is opened. Raises InvalidVolume.

    A server that holds the volume already gets a second attachment: that is how it moves to another host.
    """
    if connector:
        connections.prepare(ctx.world, volume)
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        held = _held(session, volume.id)
        free = _reserve(current, held, server_id)
        attachment = models.Attachment(
            id=models.new_id(),
            volume_id=current.id,
            project_id=current.project_id,
            server_id=server_id,
            status="reserved",
            mode="ro" if current.readonly else mode,
            managed=False,
        )
        if connector:
            _refuse_second_connection(current, held, attachment, connector)
            _connect(attachment, connector)
        session.add(attachment)
        if free:
            holders.show(session, current.id, attachment.status)
    return attachment


def _reserve(volume: models.Volume, held: list[models.Attachment], server_id: str | None) -> bool:
    """Whether the volume was free; False if that very server holds it already. Raises InvalidVolume otherwise."""
    sources = ("available", "in-use") if volume.multiattach else ("available",)
    if volume.status in sources and not volume.busy:
        return True
    mine = [one for one in held if not one.managed and server_id is not None and one.server_id == server_id]
    if volume.status in ("in-use", "reserved") and mine:
        return False
    raise errors.InvalidVolume(
        f"Volume {volume.id} status must be {' or '.join(sources)} or downloading to reserve, but the current status "
        f"is {volume.status}."
    )


def update(ctx: Context, attachment: models.Attachment, connector: Mapping[str, Any]) -> models.Attachment:
    """Note who opens the volume. Raises Conflict for a volume in an error, or one that another connection holds."""
    volume = volumes.get(ctx, attachment.volume_id)
    connections.prepare(ctx.world, volume)
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        row = _own(session, attachment)
        if "error" in current.status:
            raise errors.Conflict(
                f"Volume attachments can not be updated if the volume is in an error state. The Volume {current.id} "
                f"currently has a status of: {current.status}"
            )
        _refuse_second_connection(current, _held(session, current.id), row, connector)
        _connect(row, connector)
        row.updated_at = models.utcnow()
        holders.show(session, current.id, row.status)
    return row


def _refuse_second_connection(
    volume: models.Volume, held: list[models.Attachment], mine: models.Attachment, connector: Mapping[str, Any]
) -> None:
    """Only a server that moves to another host may have a volume open twice, unless the volume is for several."""
    others = [one for one in held if one.id != mine.id and (one.managed or one.connector is not None)]
    moving = all(one.server_id == mine.server_id and one.host != connector.get("host") for one in others)
    if others and not volume.multiattach and not (moving and mine.server_id is not None):
        raise errors.Conflict(f"duplicate connectors detected on volume {volume.id}")


def _connect(row: models.Attachment, connector: Mapping[str, Any]) -> None:
    row.connector = dict(connector)
    row.status = "attaching"
    row.host = _text(connector, "host")
    row.device = _text(connector, "mountpoint") or NO_DEVICE
    if row.mode is None:
        row.mode = "ro" if connector.get("mode") == "ro" else "rw"
    row.attached_at = models.utcnow()


def _text(connector: Mapping[str, Any], key: str) -> str | None:
    value = connector.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 255:
        raise errors.InvalidInput(f"{key} of the connector must be a string of at most 255 characters")
    return value


def _own(session: Session, attachment: models.Attachment) -> models.Attachment:
    """The row in this transaction. Raises AttachmentNotFound, AttachmentInUse if this service plugs that one in."""
    row = session.get(models.Attachment, attachment.id)
    if row is None:
        raise errors.AttachmentNotFound(attachment.id)
    if row.managed:
        raise errors.AttachmentInUse(row.server_id)
    return row


def complete(ctx: Context, attachment: models.Attachment) -> None:
    """Note that the volume is open. Raises AttachmentInUse for a disk of ours that is not yet, or no longer, there."""
    if attachment.managed and attachment.status == "attached":
        return
    with ctx.world.db.write() as session:
        volumes.lock(session, attachment.volume_id)
        row = _own(session, attachment)
        row.status = "attached"
        row.attached_at = row.attached_at or models.utcnow()
        row.updated_at = models.utcnow()
        holders.follow(session, row.volume_id)


def delete(ctx: Context, attachment: models.Attachment) -> list[models.Attachment]:
    """Remove an attachment and answer those that remain. Raises AttachmentInUse while a server uses it."""
    release(ctx, attachment)
    with ctx.world.db.read() as session:
        return _held(session, attachment.volume_id)


def release(ctx: Context, attachment: models.Attachment) -> None:
    """End an attachment; one of ours by taking the disk out of its server. Raises AttachmentInUse."""
    refuse_in_use(ctx, attachment)
    if attachment.managed:
        attachments.detach(ctx, attachment)
        return
    with ctx.world.db.write() as session:
        volumes.lock(session, attachment.volume_id)
        row = session.get(models.Attachment, attachment.id)
        if row is not None:
            session.delete(row)
            holders.follow(session, attachment.volume_id)


def refuse_in_use(ctx: Context, attachment: models.Attachment) -> None:
    """Raise AttachmentInUse if a server uses the volume by this attachment, unless a service asks.

    Whose attachment it is decides for ours. For another one Ceph does: a Nova that cannot be asked here has the image
    open as long as its server runs.
    """
    if ctx.is_service:
        return
    if attachment.managed:
        if _is_known(ctx, attachment.server_id):
            raise errors.AttachmentInUse(attachment.server_id)
    elif attachment.server_id is not None and attachment.connector is not None and _is_open(ctx, attachment):
        raise errors.AttachmentInUse(attachment.server_id)


def _is_known(ctx: Context, server_id: str | None) -> bool:
    try:
        ctx.world.guests.find(server_id or "")
    except errors.ServerNotFound:
        return False
    return True


def _is_open(ctx: Context, attachment: models.Attachment) -> bool:
    """Whether more clients have the image open than the other attachments account for."""
    with ctx.world.db.read() as session:
        volume = session.get_one(models.Volume, attachment.volume_id)
        others = [one for one in _held(session, volume.id) if one.id != attachment.id and one.status == "attached"]
    try:
        watchers = holders.strangers(ctx.world, volume)
    except errors.ImageNotFound:
        return False
    return len(watchers) > len(others)


# -- the older actions on volumes


def reserve(ctx: Context, volume: models.Volume) -> None:
    """Mark a volume as about to be attached. Raises InvalidVolume."""
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        sources = ("available", "in-use") if current.multiattach else ("available",)
        if current.busy or current.status not in sources:
            raise errors.InvalidVolume(
                f"Volume status must be {' or '.join(sources)} to reserve, but the status is {current.status}."
            )
        holders.show(session, current.id, "attaching")


def unreserve(ctx: Context, volume: models.Volume) -> None:
    """Take that mark back; nothing for a volume without it."""
    _back_from(ctx, volume, "attaching")


def roll_detaching(ctx: Context, volume: models.Volume) -> None:
    """Take the mark of `begin_detaching` back; nothing for a volume without it."""
    _back_from(ctx, volume, "detaching")


def _back_from(ctx: Context, volume: models.Volume, status: str) -> None:
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        if current.status == status:
            holders.follow(session, current.id)


def begin_detaching(ctx: Context, volume: models.Volume) -> None:
    """Mark a volume in use as about to be detached. Raises InvalidVolume."""
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        attached = any(one.status == "attached" for one in _held(session, current.id))
        if current.busy or current.status != "in-use" or not attached:
            raise errors.InvalidVolume(
                "Unable to detach volume. Volume status must be 'in-use' and attach_status must be 'attached' to "
                "detach."
            )
        holders.show(session, current.id, "detaching")


def attach(
    ctx: Context, volume: models.Volume, *, server_id: str | None, host: str | None, device: str, mode: str
) -> None:
    """Note that a volume is attached to a server, or to a host. Raises InvalidVolume.

    Nothing changes if it is noted already, but that the volume is in use.
    """
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        _refuse_maintenance(current)
        held = _held(session, current.id)
        mine = [one for one in held if (one.server_id == server_id if server_id else one.host == host)]
        if not mine:
            _refuse_attach(current, held, mode)
            session.add(
                models.Attachment(
                    volume_id=current.id,
                    project_id=current.project_id,
                    server_id=server_id,
                    host=host,
                    device=device,
                    mode=mode,
                    status="attached",
                    attached_at=models.utcnow(),
                    managed=False,
                )
            )
        elif not mine[0].managed:
            mine[0].status = "attached"
        holders.follow(session, current.id)


def _refuse_attach(volume: models.Volume, held: list[models.Attachment], mode: str) -> None:
    if volume.readonly and mode != "ro":
        raise errors.InvalidVolume(f"Invalid attaching mode '{mode}' for volume {volume.id}.")
    if held and not volume.multiattach:
        raise errors.InvalidVolume("volume is already attached and multiple attachments are not enabled")
    if volume.busy or volume.status not in ("available", "attaching", *(("in-use",) if volume.multiattach else ())):
        raise errors.InvalidVolume(f"volume {volume.id} cannot be attached in status {volume.status}")


def detach(ctx: Context, volume: models.Volume, attachment_id: str | None) -> None:
    """Note that a volume is detached; done too if it was not attached.

    Raises InvalidVolume if there are several attachments and none is named, AttachmentInUse.
    """
    _refuse_maintenance(volume)
    target = _meant(ctx, volume, attachment_id)
    if target is not None:
        release(ctx, target)
        _heal(ctx, volume.id)
    else:
        _follow(ctx, volume)


def force_detach(ctx: Context, volume: models.Volume, attachment_id: str | None) -> None:
    """Take a volume from whoever has it, by `fencing`; done too if it was not attached. Raises as that and `detach`."""
    _refuse_maintenance(volume)
    target = _meant(ctx, volume, attachment_id)
    if target is not None:
        fencing.force_detach(ctx, target)
        _heal(ctx, volume.id)
    else:
        _follow(ctx, volume)


def _meant(ctx: Context, volume: models.Volume, attachment_id: str | None) -> models.Attachment | None:
    """The attachment of that id, or the only one. Raises InvalidInput if it is another volume's, InvalidVolume."""
    with ctx.world.db.read() as session:
        held = _held(session, volume.id)
        named = session.get(models.Attachment, attachment_id) if attachment_id else None
    if named is not None and named.volume_id != volume.id:
        raise errors.InvalidInput("Mismatched volume and attachment")
    if attachment_id is None and len(held) > 1:
        raise errors.InvalidVolume("Detach volume failed: More than one attachment, but no attachment_id provided.")
    return named if attachment_id else next(iter(held), None)


def _follow(ctx: Context, volume: models.Volume) -> None:
    with ctx.world.db.write() as session:
        volumes.lock(session, volume.id)
        holders.follow(session, volume.id)


def _heal(ctx: Context, volume_id: str) -> None:
    """Take a volume that lost an attachment out of its error, as Cinder does: it is what its attachments make it."""
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume_id)
        if current.status == "error" and not current.busy:
            current.status = holders.status(one.status for one in _held(session, volume_id))
            current.updated_at = models.utcnow()


def initialize(ctx: Context, volume: models.Volume, connector: Mapping[str, Any]) -> dict[str, Any]:
    """How to open a volume; nothing is changed. Raises InvalidVolume for one in maintenance."""
    _refuse_maintenance(volume)
    connections.prepare(ctx.world, volume)
    attached = [one.mode for one in volume.attachments if one.status == "attached" and not one.managed]
    return {
        "driver_volume_type": connections.DRIVER,
        "data": connections.data(ctx.world, volume.id, attached[-1] if attached else None),
        "enforce_multipath": bool(connector.get("enforce_multipath", False)),
    }


def terminate(ctx: Context, volume: models.Volume) -> None:
    """Hear that a volume is not open any more: an RBD image is simply closed. Raises AttachmentInUse."""
    for attachment in volume.attachments:
        refuse_in_use(ctx, attachment)


def set_readonly(ctx: Context, volume: models.Volume, *, readonly: bool) -> None:
    """Allow only reading of a volume, or writing again. Raises InvalidVolume unless it is available."""
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        if current.busy or current.status != "available":
            raise errors.InvalidVolume(
                f"Volume {current.id} status must be available to update readonly flag, but current status is: "
                f"{current.status}."
            )
        current.readonly = readonly
        current.updated_at = models.utcnow()


def _refuse_maintenance(volume: models.Volume) -> None:
    """Raise InvalidVolume for a volume that nobody is to touch now."""
    if volume.status == "maintenance":
        raise errors.InvalidVolume(f"Unable to attach, detach or open volume {volume.id} during its maintenance.")
