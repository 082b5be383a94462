# SPDX-License-Identifier: Apache-2.0
"""Attachments: one row for a volume on a server, whichever API it is seen through.

The attachment row carries the intent, and the volume's status follows from its rows (`holders`). QEMU is the truth
about the disk: a row says `attached` only after the device was there. Rows that are not `managed` belong to somebody
else, who plugs the disk in (`external`): nothing here works on them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster, HeldImage
from cinderlite.context import Context, World
from cinderlite.core import (
    actions,
    cephx_users,
    encryption,
    holders,
    leftovers,
    limits,
    messages,
    servers,
    states,
    tuning,
    volumes,
    whole,
)
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import clock, models
from cinderlite.guests import RUNNING, Guest, RbdDisk, Server, Tuning, threads

LOG = logging.getLogger(__name__)

#: Seconds that the client of a disk that was let go may take to close the image, and between two looks at it.
_CLOSES_WITHIN, _LOOKS_AGAIN = 2.0, 0.1

LIFECYCLE = states.Machine(
    models.Attachment,
    #    verb       from                     through      then        on failure  unknown end
    Move("attach",  frozenset({"new"}),      "attaching", "attached", GONE,       doubt="undo"),
    Move("detach",  frozenset({"attached", "error_attaching"}), "detaching", GONE, RETURN),
    Move("undo",    frozenset({"attaching"}), "attaching", GONE,      "error_attaching"),
    Move("end",     frozenset({"attached"}), "detaching", GONE,       RETURN),
    Move("restore", frozenset({"attached"}), "attached",  "attached", "attached"),
    Move("force",   frozenset(),             "detaching", GONE,       RETURN),  # `fencing`
)  # fmt: skip


#: Seconds that the reconciler waits for one guest to let a disk go; it asks again.
_LOOKS_FOR = 0.2
#: Tries, one every two seconds, after which a dead guest's client should have lost its watch (after 30 s).
_DOUBTS_AFTER = 20


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
    table = models.Attachment
    mine = table.server_id == server.id, table.volume_id == volume_id, table.managed
    with ctx.world.db.read() as session:
        found = session.scalars(visible(ctx, all_projects=True).where(*mine)).first()
    if found is None:
        raise errors.NotAttached(server.id, volume_id)
    return found


def attach(
    ctx: Context,
    server: Server,
    volume_id: str,
    *,
    device: str | None = None,
    tag: str | None = None,
    delete_on_termination: bool = False,
    multiattach: bool = True,
) -> models.Attachment:
    """Plug a volume into a server and return the attachment, attached.

    `device` is a name that must be free; the guest chooses another one all the same. `multiattach` says whether the
    caller knows of volumes that several servers may have.

    Raises InvalidVolume, InvalidQosSpecs, DeviceInUse, NoFreePlace and other Conflicts (nothing is changed then),
    Unavailable when the end is unknown (the attachment is then undone in the background).
    """
    if server.status not in server.attachable:
        server = servers.get(ctx, server.id)  # It may have been started since it was last seen.
    if server.status not in server.attachable:
        raise _cannot_attach(server, servers.vm_state(server))
    asked = whole.named(ctx.world, volume_id)
    ctx.world.cluster_of(asked).check()
    attachment_id = models.new_id()
    attachment = models.Attachment(
        id=attachment_id,
        volume_id=volume_id,
        server_id=server.id,
        host=server.host,
        tag=tag,
        delete_on_termination=delete_on_termination,
        # Noted before there is one, so that it is removed whatever happens.
        cephx_name=cephx_users.name(ctx.world, attachment_id, asked.host, asked.namespace),
    )
    owner = LIFECYCLE.start(attachment, "attach", ctx.settings.lease, ctx.request_id)
    with contextlib.ExitStack() as stack:
        free = asked.status in ("available", "in-use") and _is_for(ctx, asked, server)
        held = stack.enter_context(holders.holding(ctx.world, asked)) if free else None
        attachment.mode = _mode(asked)
        ahead = stack.enter_context(_logging_in(ctx.world, attachment, asked, held)) if held else None
        with ctx.world.db.write() as session:
            volume = _take_volume(ctx, session, server, volume_id)
            if volume.multiattach and not multiattach:
                raise errors.BadRequest(
                    "Multiattach volumes are only supported starting with compute API version 2.60."
                )
            _refuse_taken_name(session, server, device)
            actions.begin(session, ctx, actions.ATTACH, [(server.id, server.host)])
            attachment.project_id = volume.project_id
            attachment.mode = _mode(volume)
            session.add(attachment)
        if ahead is not None:
            ahead.accepted = True
        outcome = LIFECYCLE.run(ctx.world, attachment, owner, held=held, ahead=ahead)
    if isinstance(outcome.error, errors.GuestGone):  # It has ended since it was looked up.
        raise _cannot_attach(server, "stopped") from outcome.error
    if outcome.error is not None:
        raise outcome.error
    return outcome.row or get(ctx, attachment.id)


def _mode(volume: models.Volume) -> str:
    return "ro" if volume.readonly else "rw"


@dataclasses.dataclass
class _Ahead:
    """A login that was begun before its attachment was accepted, as which by then may be wanted or not."""

    wanted: tuple[Any, ...]
    login: Future[cephx_users.Login]
    accepted: bool = False


def _wanted(attachment: models.Attachment, volume: models.Volume) -> tuple[Any, ...]:
    """All that a login depends on and that can change meanwhile."""
    return (attachment.mode, volume.host, volume.namespace, volume.image, volume.restored_from, volume.clone_depth)


@contextlib.contextmanager
def _logging_in(
    world: World, attachment: models.Attachment, volume: models.Volume, held: holders.Held
) -> Iterator[_Ahead | None]:
    """Have a user made for an attachment beside its acceptance, since the monitors take as long for it as that takes.

    If it is not accepted, the user goes again. If the process dies in between, it is one that nothing explains.
    """
    name = attachment.cephx_name
    if name is None or not (volume.status == "available" or volume.multiattach):
        yield None
        return
    # The attachment itself is the transaction's.
    like = models.Attachment(
        id=attachment.id, volume_id=volume.id, server_id=attachment.server_id, mode=attachment.mode, cephx_name=name
    )
    with threads.beside("login", lambda: _login(world, like, volume, held.result)) as login:
        ahead = _Ahead(_wanted(like, volume), login)
        try:
            yield ahead
        except Exception:
            if not ahead.accepted:
                made = login.exception() is None
                try:
                    cephx_users.revoke(world, name, volume.host, volume.namespace, made=made)
                except errors.Unavailable as error:
                    LOG.warning("a cephx user of %s is left: %s", name, error)
            raise


def _cannot_attach(server: Server, vm_state: str) -> errors.Conflict:
    return errors.Conflict(f"Cannot 'attach_volume' instance {server.id} while it is in vm_state {vm_state}")


def _take_volume(ctx: Context, session: Session, server: Server, volume_id: str) -> models.Volume:
    """The volume, locked, free for that server and shown as on its way there.

    Raises VolumeNotFound, InvalidVolume, TooManyAttachments, InvalidQosSpecs.
    """
    volume = volumes.lock(session, volume_id)
    if not _is_for(ctx, volume, server):
        raise errors.VolumeNotFound(volume_id)
    held = select(models.Attachment.server_id, models.Attachment.status)
    holding = session.execute(held.where(models.Attachment.volume_id == volume_id)).all()
    if server.id in {server_id for server_id, _ in holding}:
        raise errors.InvalidVolume(f"volume {volume_id} already attached")
    sources = ("available", "in-use") if volume.multiattach else ("available",)
    if volume.busy or volume.status not in sources:
        wanted = " or ".join(repr(one) for one in sources)
        raise errors.InvalidVolume(f"volume {volume_id} status must be {wanted}. Currently in '{volume.status}'")
    _refuse_full_server(ctx, session, server)
    limits.refuse_flawed(session, volume)
    holders.show(session, volume_id, holders.status(["attaching", *(status for _, status in holding)]))
    return volume


def _is_for(ctx: Context, volume: models.Volume, server: Server) -> bool:
    """Whether the caller may bring them together."""
    return ctx.is_admin or volume.project_id == ctx.project_id == server.project_id


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


def _refuse_taken_name(session: Session, server: Server, device: str | None) -> None:
    table = models.Attachment
    mine = table.server_id == server.id, table.managed, table.device == device
    if device is not None and session.execute(select(table.id).where(*mine)).first():
        raise errors.DeviceInUse(device)


@LIFECYCLE.step("attach")
def _attach(world: World, attachment: models.Attachment, arguments: Mapping[str, Any]) -> dict[str, Any]:
    ahead: _Ahead | None = arguments.get("ahead")
    try:
        return _plug(world, attachment, arguments.get("held"), ahead)
    except (errors.Unavailable, errors.DeviceHeld):
        raise
    except errors.CinderliteError:
        # Not before it has ended, or it would make the user after that.
        revoke(world, attachment, made=ahead is None or ahead.login.exception() is None)
        raise


def _plug(
    world: World,
    attachment: models.Attachment,
    held: holders.Held | None = None,
    ahead: _Ahead | None = None,
    *,
    doubts: bool = True,
) -> dict[str, Any]:
    """Plug it in, to be had alone unless it is shared. Who has it open is made sure of if he `doubts` that.

    Raises as its login does, if that has no known end, whatever else went wrong: it may still make a user.
    """
    guest = _find(world, attachment)
    volume = whole.named(world, attachment.volume_id)
    with contextlib.ExitStack() as stack:
        if held is None or not held.is_of(volume):
            held = stack.enter_context(holders.holding(world, volume))
        # Beside all else, since the monitors take long for a new user; it has ended when this has, or it would make
        # the user after that was removed for a guest that refuses.
        image = held.result
        if ahead is not None and ahead.wanted == _wanted(attachment, volume):
            login = ahead.login
        else:
            concurrent.futures.wait([] if ahead is None else [ahead.login])  # It is about the same user.
            login = stack.enter_context(threads.beside("login", lambda: _login(world, attachment, volume, image)))
        try:
            return _plug_as(world, attachment, volume, guest, login=login, held=held, doubts=doubts)
        except errors.CinderliteError as error:
            unknown = login.exception()
            if isinstance(unknown, errors.Unavailable) and unknown is not error:
                raise unknown from error
            raise


def _plug_as(
    world: World,
    attachment: models.Attachment,
    volume: models.Volume,
    guest: Guest,
    *,
    login: Future[cephx_users.Login],
    held: holders.Held,
    doubts: bool,
) -> dict[str, Any]:
    table = models.Attachment
    beside = or_(table.server_id == attachment.server_id, table.volume_id == attachment.volume_id)
    with world.db.read() as session:
        left = leftovers.of(session, attachment.server_id, volume.id)
        others = session.scalars(select(table).where(beside, table.id != attachment.id)).all()
        wanted, tuned = limits.of_disk(session, volume), tuning.of_disk(session, volume, guest.server.metadata)
        moment = session.scalars(select(clock.utcnow())).one()
    leftovers.remove(world, left, attachment.server_id, volume.id)
    taken = {one.device for one in others if one.managed and one.server_id == attachment.server_id and one.device}
    cluster = world.cluster_of(volume)
    if volume.multiattach:
        cluster.share(volume.image)
    # A row beside it is none of a second server's where there may be no second one: a database was put together anew.
    shared = volume.multiattach and any(one.volume_id == volume.id for one in others)
    users: list[str] = []

    def made(*, alone: bool) -> RbdDisk:
        """The disk; it is to be had `alone`, if that is said, and the users of its image are noted."""
        # Now that no other attach of ours can begin; and while QEMU opens an image all of the VM waits for Ceph.
        users[:] = holders.strangers(world, volume) if held.result().watchers() else []
        if alone and users:
            raise errors.OpenElsewhere(volume.id, ", ".join(users))
        return _disk(world, attachment, volume, tuned, wanted, login=login.result())

    try:
        device = _into(guest, lambda: made(alone=not shared), taken)
    except errors.OpenElsewhere:
        _refuse_strangers(world, guest, volume, doubts=doubts)
        device = _into(guest, lambda: made(alone=False), taken)
    # One that is off has it open later: whoever has it now is another.
    seen = not volume.multiattach or _runs(world, attachment)
    return {
        "device": device,
        "attached_at": attachment.attached_at or moment,
        "guest_missed_at": None,
        "clients": _clients(world, volume, attachment, users if shared else (), held) if seen else None,
    }


def _into(guest: Guest, made: Callable[[], RbdDisk], taken: Collection[str]) -> str:
    """Plug a disk into a guest, which is asked how it is while the disk is made; its name there.

    Raises what `made` raises; nothing is changed then.
    """
    with threads.beside("disk", made) as disk:
        device = guest.attach(disk, taken)
    disk.result()  # A guest that is off gets its disk later, and did not ask for it.
    return device


def _clients(
    world: World,
    volume: models.Volume,
    attachment: models.Attachment,
    others: Collection[str],
    held: holders.Held | None = None,
) -> list[str] | None:
    """Address of the client by which the server has the image open, and not of these `others`; None if unknown.

    A guest is one client. Where there are more, another attachment's was plugged in at the same time, and nobody is to
    be fenced for this one's end who may be that one's.
    """
    try:
        now = holders.seen(world, volume, None if held is None else held.result().watchers())
    except (errors.Unavailable, errors.CephError) as error:
        LOG.warning("attachment %s: its server's clients are not known: %s", attachment.id, error)
        return None
    found = now.difference(others) or now.intersection(attachment.clients or ())
    if found and volume.multiattach:
        table = models.Attachment
        beside = table.volume_id == volume.id, table.id != attachment.id
        with world.db.read() as session:
            found -= {
                client for clients in session.scalars(select(table.clients).where(*beside)) for client in clients or ()
            }
    return sorted(found) if len(found) == 1 else None


def _runs(world: World, attachment: models.Attachment) -> bool:
    """Whether the server runs, as its hypervisor says now."""
    try:
        return world.guests.find(attachment.server_id or "").server.status in RUNNING
    except (errors.ServerNotFound, errors.Unavailable):
        return False


def note_clients(world: World, volume: models.Volume) -> None:
    """Note anew by which clients the one server that has a volume has its image open, after it got another image."""
    with world.db.read() as session:
        held = list(session.scalars(select(models.Attachment).where(models.Attachment.volume_id == volume.id)))
    for attachment in held:
        _set_clients(world, [attachment.id], _clients(world, volume, attachment, ()))


def disk_of(world: World, attachment: models.Attachment, volume: models.Volume, server: Server) -> RbdDisk:
    """The disk that an attachment is in a server, with who opens it and what it is held to now.

    Raises ImageNotFound, UsersRefused, Unavailable.
    """
    with world.db.read() as session:
        wanted, tuned = limits.of_disk(session, volume), tuning.of_disk(session, volume, server.metadata)
    return _disk(world, attachment, volume, tuned, wanted, login=_login(world, attachment, volume))


def _login(
    world: World, attachment: models.Attachment, volume: models.Volume, held: Callable[[], HeldImage] | None = None
) -> cephx_users.Login:
    return cephx_users.login(world, attachment, volume, host=volume.host, namespace=volume.namespace, held=held)


def _disk(
    world: World,
    attachment: models.Attachment,
    volume: models.Volume,
    tuned: Tuning,
    wanted: limits.Limits,
    *,
    login: cephx_users.Login,
) -> RbdDisk:
    disk = disk_in(world, volume, world.cluster_of(volume), tuned)
    read_only = attachment.mode == "ro"
    return dataclasses.replace(disk, user=login.user, key=login.key, read_only=read_only, limits=wanted)


def disk_in(world: World, volume: models.Volume, cluster: Cluster, tuned: Tuning) -> RbdDisk:
    """The disk that a server makes of a volume's image in a cluster, without what is the attachment's own."""
    return RbdDisk(
        volume_id=volume.id,
        pool=cluster.pool,
        namespace=cluster.namespace,
        image=volume.image,
        monitors=cluster.monitors(),
        user=None,
        key=None,
        shared=volume.multiattach,
        passphrase=encryption.passphrase(world, volume),
        cluster=cluster.fsid(),
        tuning=tuned,
    )


def _is_shared(world: World, attachment: models.Attachment) -> bool:
    """Whether others may hold the volume too, so that a client that has its image open can be theirs."""
    table = models.Attachment
    with world.db.look() as connection:
        others = select(table.id).where(table.volume_id == attachment.volume_id, table.id != attachment.id)
        return connection.execute(others).first() is not None


def _refuse_strangers(world: World, guest: Guest, volume: models.Volume, *, doubts: bool) -> None:
    """Raise OpenElsewhere if a client, not this guest, has the volume's image open.

    librbd itself would let two writers take turns on one image, and their file systems would not survive it.
    """
    with contextlib.suppress(errors.GuestGone):  # It has no disks while it is off.
        if volume.id in guest.disks():
            return
        # An attach that was interrupted can have left this guest's own node open: close it, then look again.
        guest.detach(volume.id, 0)
    watchers = holders.strangers(world, volume)
    if watchers:
        if doubts:
            holders.doubt(world, volume)
        raise errors.OpenElsewhere(volume.id, ", ".join(watchers))


@LIFECYCLE.step("restore")
def _restore(world: World, attachment: models.Attachment, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _plug(world, attachment, doubts=_doubts(arguments.get("tries", 0)))
    except errors.OpenElsewhere as error:  # The watch of the guest's former process lapses after 30 s.
        raise errors.GuestStillWatches(error.message) from error


def refuse_unattached(ctx: Context, volume_id: str, *, one: bool = False) -> None:
    """Raise BadRequest unless a server has the volume from us, and only `one` if that is wanted."""
    table = models.Attachment
    mine = table.volume_id == volume_id, table.managed, table.status == "attached"
    with ctx.world.db.read() as session:
        count = session.scalar(select(func.count()).select_from(table).where(*mine)) or 0
    if not count or (one and count > 1):
        raise errors.BadRequest(f"volume {volume_id[:255]} is attached to {count} servers")


def keep_or_delete(ctx: Context, attachment: models.Attachment, *, delete_on_termination: bool) -> None:
    """Say what becomes of the volume when its server ends."""
    with ctx.world.db.write() as session:
        row = session.get(models.Attachment, attachment.id)
        if row is not None:
            row.delete_on_termination = delete_on_termination
            row.updated_at = models.utcnow()


def swap(ctx: Context, server: Server, volume_id: str, other_id: str) -> None:
    """Refuse to put one volume in the place of another, with the reason that Nova would have.

    Nova is asked for that by a Cinder that migrates a volume in use. Here such a move is done by the guest itself, and
    the volume keeps its id: nobody is ever to be told that another one took its place.

    Raises VolumeNotFound, BadRequest (there is no such other volume), NotAttached, InvalidVolume, and Conflict
    in every other case.
    """
    old = volumes.get(ctx, volume_id)
    if old.migration_status in (None, ""):
        raise errors.NotMigrating(volume_id)
    try:
        other = volumes.get(ctx, other_id)
    except errors.VolumeNotFound as error:
        raise errors.BadRequest(error.message) from error
    on_server(ctx, server, volume_id)
    if sum(one.mode != "ro" for one in old.attachments) > 1:
        raise errors.InvalidVolume(f"volume {volume_id} is written by several servers")
    if other.size < old.size:
        raise errors.InvalidVolume("New volume must be the same size or larger.")
    raise errors.Conflict(f"volume {volume_id} is moved by its server itself and stays the volume that it is")


def detach(ctx: Context, attachment: models.Attachment) -> None:
    """Ask the guest to let the volume go and wait a bounded time for it.

    A guest that does not let go in time leaves the volume `detaching`, with a user message that says why; the work
    goes on in the background. Raises InvalidVolume when the volume is not in-use, BadRequest if the server boots from
    it.
    """
    _refuse_root(ctx.world, attachment)
    with ctx.world.db.write() as session:
        owner = LIFECYCLE.begin(
            session, attachment.id, "detach", ctx.settings.lease, ctx.request_id, asked_at=clock.read(session)
        )
        if owner is None or volumes.lock(session, attachment.volume_id).busy:
            raise errors.InvalidVolume(
                f"Unable to detach volume {attachment.volume_id}. Volume status must be 'in-use' and attach_status "
                f"must be 'attached' to detach."
            )
        holders.follow(session, attachment.volume_id)
        actions.begin(session, ctx, actions.DETACH, [(attachment.server_id or "", attachment.host)])
    outcome = LIFECYCLE.run(ctx.world, attachment.id, owner)
    if outcome.word == "postponed" and outcome.error is not None:
        with ctx.world.db.write() as session:
            messages.leave(session, attachment, "detach", outcome.error.message, request_id=ctx.request_id)


def _refuse_root(world: World, attachment: models.Attachment) -> None:
    """Raise BadRequest for a bootable volume that the server boots from, as far as it can tell now."""
    with world.db.look() as connection:
        bootable = connection.scalar(select(models.Volume.bootable).where(models.Volume.id == attachment.volume_id))
    if not bootable:
        return
    with contextlib.suppress(errors.GuestGone, errors.Unavailable):
        if _find(world, attachment).boots_from() == attachment.volume_id:
            raise errors.BadRequest("Cannot detach a root device volume")


@LIFECYCLE.step("detach")
def _detach(world: World, attachment: models.Attachment, intent: Mapping[str, Any]) -> None:
    # Who asked waits; after that it is the reconciler who looks, and others wait for that.
    first = not intent.get("tries")
    wait = world.settings.detach_wait if first else min(world.settings.detach_wait, _LOOKS_FOR)
    with _revoking(world, attachment, made=intent.get("verb") != "undo", soon=first) as let_go:
        try:
            _find(world, attachment).detach(attachment.volume_id, wait, let_go)
        except errors.GuestGone:
            _refuse_watched(world, attachment, intent.get("tries", 0))
        except errors.DeviceHeld as error:
            most, asked_at = world.settings.give_up_detach_after, intent.get("asked_at")
            with world.db.read() as session:
                late = most and asked_at is not None and clock.read(session) - asked_at > most
            if late:
                raise errors.DetachGivenUp(attachment.server_id, f"{most:g}") from error
            raise


LIFECYCLE.step("undo")(_detach)


@LIFECYCLE.step("end")
def _end(world: World, attachment: models.Attachment, arguments: Mapping[str, Any]) -> None:
    """Let go of the volume of a server that is no more, once its process is not seen by Ceph either."""
    if not _has_ended(world, attachment):
        raise errors.Conflict(f"server {attachment.server_id} is back, or may be")
    _detach(world, attachment, arguments)
    world.wake.set()  # Its volume may be deleted with it.


def revoke(world: World, attachment: models.Attachment, *, made: bool = True) -> None:
    """Remove the cephx user that was made for it, now that no guest needs it; who still uses it is fenced.

    `made` as for `cephx_users.revoke`. Raises Unavailable.
    """
    with _revoking(world, attachment, made=made, soon=True):
        pass


@contextlib.contextmanager
def _revoking(
    world: World, attachment: models.Attachment, *, made: bool, soon: bool
) -> Iterator[Callable[[], None] | None]:
    """The same at the end of what is done meanwhile, if it does not fail. The user can go before that.

    That begins when what is yielded is called: the guest has no such disk any more, but may not have closed its image
    yet. If that is likely to be `soon`, the image is opened now, to be looked at then.
    """
    name = attachment.cephx_name
    if name is None:
        yield None
        return
    volume = whole.named(world, attachment.volume_id)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(holders.holding(world, volume)) if attachment.clients and soon else None
        revoked = threads.Upon(
            "revoke", lambda: cephx_users.revoke(world, name, volume.host, volume.namespace, made=made)
        )
        stack.callback(revoked.end)
        yield revoked.begin
        # At a time: who opens the image from now on is another client than those that had it.
        revoked.begin()
        if attachment.clients:
            _fence_left(world, volume, attachment.clients, held)
        revoked.result()


def _fence_left(world: World, volume: models.Volume, clients: Collection[str], held: holders.Held | None) -> None:
    """Have Ceph take nothing more from clients of an attachment that has ended, should they have the image open still.

    As a rule they have not: a guest closes the image before it has let the disk go. One that was killed did not, and
    the ticket of a user that is no more holds for an hour.
    """
    deadline = time.monotonic() + _CLOSES_WITHIN
    while True:
        try:
            watchers = held.result().watchers() if held else world.cluster_of(volume).info(volume.image).watchers
            left = set(watchers).intersection(clients)
        except (errors.ImageNotFound, errors.BackendMissing):
            return
        if not left:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOKS_AGAIN)
    LOG.warning("volume %s: clients %s kept it open and are fenced", volume.id, ", ".join(sorted(left)))
    try:
        world.cluster_of(volume).fence(left, world.settings.fence_for)
    except errors.CephError as error:
        LOG.warning("volume %s: they cannot be fenced: %s", volume.id, error)


def _find(world: World, attachment: models.Attachment) -> Guest:
    try:
        return world.guests.find(attachment.server_id or "", fresh=False)
    except errors.ServerNotFound as error:
        raise errors.GuestGone(attachment.server_id) from error


def _doubts(tries: int) -> bool:
    """Whether a dead guest's client should have lost its watch by now, and has it still; now and then."""
    return tries > 0 and tries % _DOUBTS_AFTER == 0


def _refuse_watched(world: World, attachment: models.Attachment, tries: int) -> None:
    """The guest's process is gone; its volume is free once Ceph has seen that too (30 s after a kill)."""
    if _is_shared(world, attachment):
        return
    volume = whole.named(world, attachment.volume_id)
    try:
        watchers = holders.strangers(world, volume)
    except errors.ImageNotFound:
        return
    if watchers:
        if _doubts(tries):
            holders.doubt(world, volume)
        raise errors.GuestStillWatches(", ".join(watchers))


@LIFECYCLE.settled
def _settled(
    session: Session, attachment: models.Attachment, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    if intent["verb"] != "restore":
        holders.follow(session, attachment.volume_id)
        undone = "it was taken back" if intent["verb"] == "undo" else None
        actions.end(session, intent["request_id"], error.message if error else undone)
    if intent["verb"] == "force" and error is None:
        text = f"an administrator took the volume from server {attachment.server_id}, which cannot write to it any more"
        messages.leave(session, attachment, "detach", text, request_id=intent["request_id"])
    if error is not None:
        messages.leave(session, attachment, intent["verb"], error.message, request_id=intent["request_id"])
    elif intent["verb"] == "end" and attachment.delete_on_termination:
        try:
            volumes.delete_with_server(session, attachment.volume_id, intent["request_id"])
        except errors.CinderliteError as why:
            messages.leave(session, attachment, "end", f"the volume is not deleted with its server: {why.message}")


# -- making guests and rows agree


def look_at(world: World, server_id: str, volume_id: str | None) -> None:
    """Go on at once with what waits for a server, or for it to let a volume go: something has happened to it."""
    table = models.Attachment
    mine = [table.server_id == server_id, *([] if volume_id is None else [table.volume_id == volume_id])]
    with world.db.read() as session:
        waiting = list(session.scalars(select(table.id).where(*mine, table.busy == 1, table.lease_owner.is_(None))))
    for row_id in waiting:
        with world.db.write() as session:
            LIFECYCLE.hasten(session, row_id)
        owner = LIFECYCLE.claim(world, row_id, world.settings.lease)
        if owner is not None:
            LIFECYCLE.run(world, row_id, owner)
    if volume_id is None:
        reconcile(world, server_id)


def reconcile(world: World, server_id: str | None = None) -> list[str]:
    """Compare what guests hold with the attached rows; returns the ids of attachments that work was begun on.

    A running guest that lacks a disk gets it again (it was restarted), and one whose limits are others than those of
    the volume's type now, in its size, gets these. A server that has not been there any more for `guest_gone_after`
    seconds (not one that is shut off), and that Ceph does not see either, gives its volumes back. With `server_id` only
    that one is looked at.
    """
    with world.db.read() as session:
        table = models.Attachment
        whose = table.server_id.is_not(None) if server_id is None else table.server_id == server_id
        rows = session.scalars(
            select(table)
            .where(table.status == "attached", table.busy == 0, table.managed, whose)
            .options(joinedload(table.volume).load_only(models.Volume.size, models.Volume.volume_type_id))
        )
        by_server: dict[str, list[models.Attachment]] = {}
        wanted = {}
        for row in rows:
            by_server.setdefault(row.server_id or "", []).append(row)
            wanted[row.volume_id] = limits.of_disk(session, row.volume)
    begun = []
    for one, mine in sorted(by_server.items()):
        begun += _reconcile_server(world, one, mine, wanted)
    return begun


def _reconcile_server(
    world: World, server_id: str, rows: list[models.Attachment], wanted: Mapping[str, limits.Limits]
) -> list[str]:
    try:
        guest = world.guests.find(server_id, fresh=False)
        present = _limited(guest, {row.volume_id: wanted[row.volume_id] for row in rows})
    except (errors.GuestGone, errors.ServerNotFound):
        _set_clients(world, [row.id for row in rows if row.clients is not None], None)
        if not _has_ended(world, *rows):
            return _seen(world, rows)
        return [row.id for row in rows if _missed(world, row) and _begin(world, row, "end")]
    except errors.Unavailable:
        return []  # Not knowing is no reason to act.
    _seen(world, rows)
    _follow(world, rows, guest.server.host)
    if guest.server.status in RUNNING:
        for row in rows:
            if row.clients is None and row.volume_id in present:
                _meet(world, row)
    return [row.id for row in rows if row.volume_id not in present and _begin(world, row, "restore")]


def _limited(guest: Guest, wanted: Mapping[str, limits.Limits]) -> frozenset[str]:
    """What a guest holds, the limits of it put right where they are not."""
    try:
        return guest.limit(wanted)
    except errors.GuestRefused as error:
        LOG.warning("server %s: the limits of a disk cannot be changed: %s", guest.server.id, error)
        return guest.disks()


def _meet(world: World, row: models.Attachment) -> None:
    """Note by which clients a server has a volume that came into it at its start, where these can be no other's."""
    if not _is_shared(world, row):
        volume = whole.named(world, row.volume_id)
        with contextlib.suppress(errors.ImageNotFound):
            _set_clients(world, [row.id], _clients(world, volume, row, ()))


def _set_clients(world: World, ids: Sequence[str], clients: list[str] | None) -> None:
    if ids:
        table = models.Attachment
        with world.db.write() as session:
            session.execute(update(table).where(table.id.in_(ids), table.busy == 0).values(clients=clients))


def _missed(world: World, row: models.Attachment) -> bool:
    """Note that the guest is gone; True once it has been for long enough."""
    table = models.Attachment
    if row.guest_missed_at is None:
        with world.db.write() as session:
            session.execute(update(table).where(table.id == row.id).values(guest_missed_at=clock.now()))
        return world.settings.guest_gone_after <= 0
    with world.db.read() as session:
        return clock.read(session) - row.guest_missed_at >= world.settings.guest_gone_after


def _has_ended(world: World, *rows: models.Attachment) -> bool:
    """Whether the server of some attachments is no more, by the word of one who can tell for its host."""
    moments = [row.attached_at for row in rows if row.attached_at is not None and row.host in world.guests.hosts]
    if len(moments) < len(rows):
        return False
    with world.db.read() as session:
        ago = session.scalars(select(clock.utcnow())).one() - max(moments)
    return world.guests.ended(rows[0].server_id or "", ago.total_seconds())


def _seen(world: World, rows: list[models.Attachment]) -> list[str]:
    """Note that the server of some attachments is there; nothing else is to be done."""
    ids = [row.id for row in rows if row.guest_missed_at is not None]
    if ids:
        with world.db.write() as session:
            session.execute(update(models.Attachment).where(models.Attachment.id.in_(ids)).values(guest_missed_at=None))
    return []


def _follow(world: World, rows: list[models.Attachment], host: str) -> None:
    """Note that a server runs on another host now, by other clients of Ceph: it was migrated."""
    ids = [row.id for row in rows if row.host != host]
    if ids:
        with world.db.write() as session:
            changed = update(models.Attachment).where(models.Attachment.id.in_(ids))
            session.execute(changed.values(host=host, clients=None))


def _begin(world: World, row: models.Attachment, verb: str) -> bool:
    with world.db.write() as session:
        owner = LIFECYCLE.begin(session, row.id, verb, world.settings.lease, "reconcile")
        if owner is None:
            return False
        if verb == "end":
            holders.follow(session, row.volume_id)
            messages.leave(session, row, "end", f"server {row.server_id} is no more; the volume is released")
    LIFECYCLE.run(world, row.id, owner)
    return True
