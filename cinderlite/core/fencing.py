# SPDX-License-Identifier: Apache-2.0
"""Force-detach: a volume leaves a server that is dead, hung or lost, and that might write again.

The order is all: find out which clients in Ceph are that server's, have Ceph take nothing more from them, see that it
is so, and only then let the volume go. A server that answers is asked for the disk first; if it lets go nobody is
fenced. What a newcomer gets wrong: a client that was stopped for 30 s is no watcher any more, and writes all the same
when it goes on. So an attachment remembers its client (`clients`), from when the disk was plugged in.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import attachments, holders, leftovers, messages, own_clients, volumes, whole
from cinderlite.core.attachments import LIFECYCLE
from cinderlite.db import models

LOG = logging.getLogger(__name__)

#: Whatever an attachment is, it can be ended by force.
_ANY = frozenset({"reserved", "attaching", "attached", "detaching", "error_attaching"})
#: Statuses that it can stay in.
_AT_REST = frozenset({"reserved", "attached", "error_attaching"})
#: Seconds that the watch of a fenced client may take to go, and between two looks at it.
_SEEN_WITHIN, _LOOK_AGAIN = 5.0, 0.1


def force_detach(ctx: Context, attachment: models.Attachment, named: Collection[str] = ()) -> None:
    """End an attachment whatever its server is doing; the server cannot write to the volume after that.

    What cannot be done now (Ceph does not answer) is done in the background, the volume being `detaching` until then.
    `named` are the addresses of the server's clients if the caller knows better. Raises ClientsUnclear, InvalidInput,
    Unavailable, Conflict if our user may fence nobody. Nothing has changed then.
    """
    volume = whole.named(ctx.world, attachment.volume_id)
    ctx.world.cluster_of(volume).check()
    clients = _clients(ctx.world, volume, attachment, named)
    owner = _begin(ctx, attachment, {"clients": clients, "named": bool(named)})
    if owner is None:
        ctx.world.wake.set()  # Somebody is at work on it, and is to leave off; then it is the reconciler's.
        return
    outcome = LIFECYCLE.run(ctx.world, attachment.id, owner)
    if outcome.word == "failed" and outcome.error is not None:
        raise outcome.error
    if outcome.word == "postponed" and outcome.error is not None:
        with ctx.world.db.write() as session:
            messages.leave(session, attachment, "detach", outcome.error.message, request_id=ctx.request_id)


def by_operator(world: World, attachment_id: str, named: Collection[str]) -> str:
    """The same from the command line; what has become of the volume. Raises AttachmentNotFound besides."""
    ctx = Context(world, "", "", frozenset(), "cinderlite-manage", is_admin=True)
    attachment = attachments.get(ctx, attachment_id)
    force_detach(ctx, attachment, named)
    volume = whole.named(world, attachment.volume_id)
    return f"volume {volume.id} is {volume.status}"


def _begin(ctx: Context, attachment: models.Attachment, whom: Mapping[str, Any]) -> str | None:
    """Take the row, from whoever works on it too; the lease, None if that one has yet to leave off."""
    lease, table = ctx.settings.lease, models.Attachment
    with ctx.world.db.write() as session:
        volumes.lock(session, attachment.volume_id)
        former = session.get(table, attachment.id)
        if former is None:
            raise errors.AttachmentNotFound(attachment.id)
        # Where it goes back to, should it fail: never to a status on the way to another one.
        rest = former.previous_status if former.busy else former.status
        owner = LIFECYCLE.begin(session, former.id, "force", lease, ctx.request_id, sources=_ANY, **whom)
        if owner is None:
            LIFECYCLE.interrupt(session, former.id, "force", ctx.request_id, _ANY, **whom)
            LIFECYCLE.hasten(session, former.id)
        session.refresh(former)
        former.previous_status = rest if rest in _AT_REST else "error_attaching"
        holders.follow(session, attachment.volume_id)
    return owner or LIFECYCLE.claim(ctx.world, attachment.id, lease)


@LIFECYCLE.step("force")
def _force(world: World, attachment: models.Attachment, intent: Mapping[str, Any]) -> dict[str, Any]:
    if attachment.managed and _let_go(world, attachment):
        attachments.revoke(world, attachment)
        return {}
    volume = whole.named(world, attachment.volume_id)
    cluster, clients = world.cluster_of(volume), _to_fence(world, volume, attachment, intent)
    if clients:
        LOG.warning(
            "volume %s is taken from server %s, whose clients %s are fenced for %d s",
            volume.id, attachment.server_id, ", ".join(clients), world.settings.fence_for,
        )  # fmt: skip
        try:
            cluster.fence(clients, world.settings.fence_for)
        except errors.CephError as error:
            raise errors.Conflict(f"Ceph does not let this service keep a client out: {error.message}") from error
        _wait_until_gone(world, volume, clients)
    if attachment.managed:
        attachments.revoke(world, attachment)
        leftovers.remember(world, attachment, volume, clients)
    return {}


def _to_fence(
    world: World, volume: models.Volume, attachment: models.Attachment, intent: Mapping[str, Any]
) -> list[str]:
    """Those that were the server's clients when this began, and that have come since, by an attach that was at work."""
    since: list[str] = []
    if not intent["named"]:
        with contextlib.suppress(errors.ClientsUnclear):
            since = _clients(world, volume, attachment, ())
    return sorted({*intent["clients"], *since})


def _let_go(world: World, attachment: models.Attachment) -> bool:
    """Whether the server gave the disk back, asked in the ordinary way; or is dead, and Ceph sees that."""
    try:
        world.guests.find(attachment.server_id or "", fresh=False).detach(
            attachment.volume_id, world.settings.detach_wait
        )
    except (errors.DeviceHeld, errors.Unavailable, errors.GuestRefused, errors.GuestError, errors.ServerNotFound):
        return False
    return True


def _wait_until_gone(world: World, volume: models.Volume, clients: Collection[str]) -> None:
    """Wait until Ceph does not count fenced clients as users of the image any more. Raises FencePending."""
    deadline = time.monotonic() + _SEEN_WITHIN
    while True:
        try:
            left = set(world.cluster_of(volume).info(volume.image).watchers).intersection(clients)
        except errors.ImageNotFound:
            return
        if not left:
            return
        if time.monotonic() > deadline:
            holders.doubt(world, volume)
            raise errors.FencePending(", ".join(sorted(left)))
        time.sleep(_LOOK_AGAIN)


# -- whose client is whose


def _clients(world: World, volume: models.Volume, attachment: models.Attachment, named: Collection[str]) -> list[str]:
    """Addresses of the clients by which an attachment's server has the volume's image open, or may have.

    Raises ClientsUnclear if it has several users and nobody knows whose they are, InvalidInput for a wrong `named`.
    """
    seen = _users(world, volume)
    mine = set(attachment.clients or ())
    if not named and (_only_reads(attachment) or attachment.status == "reserved"):
        return []
    if named:
        if wrong := set(named) - seen - mine:
            raise errors.InvalidInput(f"{', '.join(sorted(wrong))} does not have volume {volume.id} open")
        return sorted(named)
    if _is_dead(world, attachment):
        mine &= seen  # What is dead writes no more; what Ceph still sees of it is fenced to be quick.
    with world.db.read() as session:
        table = models.Attachment
        others = list(session.scalars(select(table).where(table.volume_id == volume.id, table.id != attachment.id)))
    known = {client for one in others for client in one.clients or ()}
    unknown = seen - mine - known
    if not unknown or (mine and mine <= seen and others):
        return sorted(mine)
    if all(_only_reads(one) or seen.intersection(one.clients or ()) for one in others):
        return sorted(mine | unknown)
    raise errors.ClientsUnclear(volume.id, ", ".join(sorted(unknown)), attachment.id)


def _only_reads(attachment: models.Attachment) -> bool:
    """Whether its server has the image open in such a way that Ceph cannot see it, nor need it keep it out."""
    return attachment.managed and attachment.mode == "ro"


def _users(world: World, volume: models.Volume) -> set[str]:
    """Addresses of all clients that use an image, but for our own processes'."""
    cluster = world.cluster_of(volume)
    try:
        info = cluster.info(volume.image)
    except errors.ImageNotFound:
        return set()
    found = {*info.watchers, *info.owners}
    return found - holders.ours(world, volume.id) - own_clients.addresses(world) if found else found


def _is_dead(world: World, attachment: models.Attachment) -> bool:
    """Whether the server's process is known not to exist any more."""
    if not attachment.managed:
        return False
    try:
        world.guests.find(attachment.server_id or "", fresh=False).disks()
    except errors.GuestGone:
        return True
    except (errors.Unavailable, errors.GuestRefused, errors.ServerNotFound):
        return False
    return False
