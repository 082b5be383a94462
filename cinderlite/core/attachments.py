# SPDX-License-Identifier: Apache-2.0
"""Attachments: one row for a volume on a server, whichever API it is seen through.

The attachment row carries the intent, and the volume's status follows from its rows (`holders`). QEMU is the truth
about the disk: a row says `attached` only after the device was there. Rows that are not `managed` belong to somebody
else, who plugs the disk in (`external`): nothing here works on them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session, joinedload

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import encryption, holders, messages, servers, states, volumes
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import models
from cinderlite.guests import Guest, RbdDisk, Server

LIFECYCLE = states.Machine(
    models.Attachment,
    #    verb       from                     through      then        on failure  unknown end
    Move("attach",  frozenset({"new"}),      "attaching", "attached", GONE,       doubt="undo"),
    Move("detach",  frozenset({"attached", "error_attaching"}), "detaching", GONE, RETURN),
    Move("undo",    frozenset({"attaching"}), "attaching", GONE,      "error_attaching"),
    Move("restore", frozenset({"attached"}), "attached",  "attached", "attached"),
)  # fmt: skip


def visible(ctx: Context, *, all_projects: bool = False) -> Select[models.Attachment]:
    """The attachments that the caller may see, oldest first."""
    table = models.Attachment
    query = select(table).options(joinedload(table.volume)).order_by(table.created_at, table.id)
    if not (ctx.is_admin and all_projects):
        query = query.where(table.project_id == ctx.project_id)
    return query


def get(ctx: Context, attachment_id: str) -> models.Attachment:
    """The attachment of that id. Raises AttachmentNotFound."""
    with ctx.world.db.read() as session:
        query = visible(ctx, all_projects=True).where(models.Attachment.id == attachment_id)
        found = session.scalars(query).one_or_none()
    if found is None:
        raise errors.AttachmentNotFound(attachment_id)
    return found


def of_server(ctx: Context, server: Server) -> list[models.Attachment]:
    """What this service plugged into a server, oldest first."""
    return of_servers(ctx, [server.id]).get(server.id, [])


def of_servers(ctx: Context, server_ids: Sequence[str]) -> dict[str, list[models.Attachment]]:
    """The attachments of several servers by server id."""
    found: dict[str, list[models.Attachment]] = {}
    with ctx.world.db.read() as session:
        query = visible(ctx, all_projects=True).where(
            models.Attachment.server_id.in_(server_ids), models.Attachment.managed
        )
        for row in session.scalars(query):
            found.setdefault(row.server_id or "", []).append(row)
    return found


def on_server(ctx: Context, server: Server, volume_id: str) -> models.Attachment:
    """The attachment of one volume to one server. Raises NotAttached."""
    for row in of_server(ctx, server):
        if row.volume_id == volume_id:
            return row
    raise errors.NotAttached(volume_id)


def attach(
    ctx: Context, server: Server, volume_id: str, *, tag: str | None = None, delete_on_termination: bool = False
) -> models.Attachment:
    """Plug a volume into a running server and return the attachment, attached.

    Raises InvalidVolume, NoFreePlace and other Conflicts (nothing is changed then), Unavailable when the end is
    unknown (the attachment is then undone in the background).
    """
    if server.status not in servers.ATTACHABLE:
        server = servers.get(ctx, server.id)  # It may have been started since it was last seen.
    if server.status not in servers.ATTACHABLE:
        raise errors.Conflict(
            f"Cannot 'attach_volume' instance {server.id} while it is in vm_state {server.status.lower()}"
        )
    with ctx.world.db.read() as session:
        asked = session.get(models.Volume, volume_id)
    if asked is None:
        raise errors.VolumeNotFound(volume_id)
    ctx.world.cluster(asked.host).check()
    attachment = models.Attachment(
        id=models.new_id(),
        volume_id=volume_id,
        server_id=server.id,
        host=server.host,
        tag=tag,
        delete_on_termination=delete_on_termination,
    )
    owner = LIFECYCLE.start(attachment, "attach", ctx.settings.lease, ctx.request_id)
    with ctx.world.db.write() as session:
        volume = _take_volume(ctx, session, server, volume_id)
        attachment.project_id = volume.project_id
        attachment.mode = "ro" if volume.readonly else "rw"
        session.add(attachment)
        holders.follow(session, volume_id)
    outcome = LIFECYCLE.run(ctx.world, attachment.id, owner)
    if outcome.error is not None:
        raise outcome.error
    return get(ctx, attachment.id)


def _take_volume(ctx: Context, session: Session, server: Server, volume_id: str) -> models.Volume:
    """The volume, locked and free for that server. Raises VolumeNotFound, InvalidVolume, TooManyAttachments."""
    volume = volumes.lock(session, volume_id)
    if not ctx.is_admin and not volume.project_id == ctx.project_id == server.project_id:
        raise errors.VolumeNotFound(volume_id)
    here = select(models.Attachment.id).where(
        models.Attachment.volume_id == volume_id, models.Attachment.server_id == server.id
    )
    if session.execute(here).first():
        raise errors.InvalidVolume(f"volume {volume_id} already attached")
    sources = ("available", "in-use") if volume.multiattach else ("available",)
    if volume.busy or volume.status not in sources:
        wanted = " or ".join(repr(one) for one in sources)
        raise errors.InvalidVolume(f"volume {volume_id} status must be {wanted}. Currently in '{volume.status}'")
    _refuse_full_server(ctx, session, server)
    return volume


def _refuse_full_server(ctx: Context, session: Session, server: Server) -> None:
    most = ctx.settings.max_attachments
    if most < 0:
        return
    held = session.scalar(
        select(func.count())
        .select_from(models.Attachment)
        .where(models.Attachment.server_id == server.id, models.Attachment.managed)
    )
    if held is not None and held >= most:
        raise errors.TooManyAttachments(most)


@LIFECYCLE.step("attach")
def _attach(world: World, attachment: models.Attachment, _arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _plug(world, attachment)


def _plug(world: World, attachment: models.Attachment) -> dict[str, Any]:
    guest = _find(world, attachment)
    with world.db.read() as session:
        volume = session.get_one(models.Volume, attachment.volume_id)
        others = session.scalars(
            select(models.Attachment.device).where(
                models.Attachment.server_id == attachment.server_id,
                models.Attachment.id != attachment.id,
                models.Attachment.managed,
            )
        )
        taken = {name for name in others if name is not None}
    cluster = world.cluster(volume.host)
    if volume.multiattach:
        cluster.share(volume.image)
    if not _is_shared(world, attachment):
        _refuse_strangers(world, guest, volume)
    device = guest.attach(
        RbdDisk(
            volume_id=volume.id,
            pool=cluster.pool,
            image=volume.image,
            monitors=cluster.monitors(),
            user=cluster.user,
            key=cluster.key(),
            read_only=attachment.mode == "ro",
            shared=volume.multiattach,
            passphrase=encryption.passphrase(world, volume),
        ),
        taken,
    )
    return {"device": device, "attached_at": attachment.attached_at or models.utcnow(), "guest_missed_at": None}


def _is_shared(world: World, attachment: models.Attachment) -> bool:
    """Whether others may hold the volume too, so that a client that has its image open can be theirs."""
    table = models.Attachment
    with world.db.read() as session:
        others = select(table.id).where(table.volume_id == attachment.volume_id, table.id != attachment.id)
        return session.execute(others).first() is not None


def _refuse_strangers(world: World, guest: Guest, volume: models.Volume) -> None:
    """Raise InvalidVolume if a client, not this guest, has the volume's image open.

    librbd itself would let two writers take turns on one image, and their file systems would not survive it.
    """
    if not holders.strangers(world, volume) or volume.id in guest.disks():
        return
    # An attach that was interrupted can have left this guest's own node open: close it, then look again.
    guest.detach(volume.id, 0)
    watchers = holders.strangers(world, volume)
    if watchers:
        raise errors.InvalidVolume(f"volume {volume.id} is still open elsewhere: {', '.join(watchers)}")


@LIFECYCLE.step("restore")
def _restore(world: World, attachment: models.Attachment, _arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _plug(world, attachment)
    except errors.InvalidVolume as error:  # The watch of the guest's former process lapses after 30 s.
        raise errors.GuestStillWatches(error.message) from error


def detach(ctx: Context, attachment: models.Attachment) -> None:
    """Ask the guest to let the volume go and wait a bounded time for it.

    A guest that does not let go in time leaves the volume `detaching`, with a user message that says why; the work
    goes on in the background. Raises InvalidVolume when the volume is not in-use.
    """
    with ctx.world.db.write() as session:
        owner = LIFECYCLE.begin(session, attachment.id, "detach", ctx.settings.lease, ctx.request_id)
        if owner is None or volumes.lock(session, attachment.volume_id).busy:
            raise errors.InvalidVolume(
                f"Unable to detach volume {attachment.volume_id}. Volume status must be 'in-use' and attach_status "
                f"must be 'attached' to detach."
            )
        holders.follow(session, attachment.volume_id)
    outcome = LIFECYCLE.run(ctx.world, attachment.id, owner)
    if outcome.word == "postponed" and outcome.error is not None:
        with ctx.world.db.write() as session:
            messages.leave(session, attachment, "detach", outcome.error.message, request_id=ctx.request_id)


@LIFECYCLE.step("detach")
def _detach(world: World, attachment: models.Attachment, _arguments: Mapping[str, Any]) -> None:
    try:
        _find(world, attachment).detach(attachment.volume_id, world.settings.detach_wait)
    except errors.GuestGone:
        _refuse_watched(world, attachment)


LIFECYCLE.step("undo")(_detach)


def _find(world: World, attachment: models.Attachment) -> Guest:
    try:
        return world.guests.find(attachment.server_id or "", fresh=False)
    except errors.ServerNotFound as error:
        raise errors.GuestGone(attachment.server_id) from error


def _refuse_watched(world: World, attachment: models.Attachment) -> None:
    """The guest's process is gone; its volume is free once Ceph has seen that too (30 s after a kill)."""
    if _is_shared(world, attachment):
        return
    with world.db.read() as session:
        volume = session.get_one(models.Volume, attachment.volume_id)
    try:
        watchers = holders.strangers(world, volume)
    except errors.ImageNotFound:
        return
    if watchers:
        raise errors.GuestStillWatches(", ".join(watchers))


@LIFECYCLE.settled
def _settled(
    session: Session, attachment: models.Attachment, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    if intent["verb"] != "restore":
        holders.follow(session, attachment.volume_id)
    if error is not None:
        messages.leave(session, attachment, intent["verb"], error.message, request_id=intent["request_id"])


# -- making guests and rows agree


def reconcile(world: World) -> list[str]:
    """Compare what guests hold with the attached rows; returns the ids of attachments that work was begun on.

    A running guest that lacks a disk gets it again (it was restarted). A guest whose process has been gone for
    `guest_gone_after` seconds, and that Ceph does not see any more either, gives its volumes back.
    """
    with world.db.read() as session:
        table = models.Attachment
        rows = session.scalars(
            select(table).where(
                table.status == "attached", table.busy == 0, table.managed, table.server_id.is_not(None)
            )
        )
        by_server: dict[str, list[models.Attachment]] = {}
        for row in rows:
            by_server.setdefault(row.server_id or "", []).append(row)
    begun = []
    for server_id, mine in sorted(by_server.items()):
        begun += _reconcile_server(world, server_id, mine)
    return begun


def _reconcile_server(world: World, server_id: str, rows: list[models.Attachment]) -> list[str]:
    try:
        present = world.guests.find(server_id, fresh=False).disks()
    except (errors.GuestGone, errors.ServerNotFound):
        return [row.id for row in rows if _missed(world, row) and _begin(world, row, "detach")]
    except errors.Unavailable:
        return []  # Not knowing is no reason to act.
    _seen(world, [row.id for row in rows if row.guest_missed_at is not None])
    return [row.id for row in rows if row.volume_id not in present and _begin(world, row, "restore")]


def _missed(world: World, row: models.Attachment) -> bool:
    """Note that the guest is gone; True once it has been for long enough."""
    now = time.time()
    if row.guest_missed_at is None:
        with world.db.write() as session:
            session.execute(update(models.Attachment).where(models.Attachment.id == row.id).values(guest_missed_at=now))
        return world.settings.guest_gone_after <= 0
    return now - row.guest_missed_at >= world.settings.guest_gone_after


def _seen(world: World, ids: list[str]) -> None:
    if ids:
        with world.db.write() as session:
            session.execute(update(models.Attachment).where(models.Attachment.id.in_(ids)).values(guest_missed_at=None))


def _begin(world: World, row: models.Attachment, verb: str) -> bool:
    with world.db.write() as session:
        owner = LIFECYCLE.begin(session, row.id, verb, world.settings.lease, "reconcile")
        if owner is None:
            return False
        if verb == "detach":
            holders.follow(session, row.volume_id)
            reason = f"server {row.server_id} is not running any more; the volume is released"
            messages.leave(session, row, "detach", reason)
    LIFECYCLE.run(world, row.id, owner)
    return True
