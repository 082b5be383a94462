# SPDX-License-Identifier: Apache-2.0
"""Moving a volume that a server has open to another pool: QEMU copies it and then goes on with the other image.

What a newcomer gets wrong first: the row's `host` is at every moment where *all* of the volume is, so that whoever dies
and whoever looks, a restarted guest above all, finds every write there. So it changes neither before the copy nor
after the guest has changed over, but between two commands to QEMU, while both images are equal and the guest's writes
wait (doc/decisions/0012). Before that what is in the target may go at any time, after it what is in the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cinderlite import errors, jobs
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import Backend, World
from cinderlite.core import attachments, cephx_users, encryption, holders, limits, states, tuning, volumes
from cinderlite.db import clock, models
from cinderlite.guests import COPYING, FAILED, MOVED, NONE, Guest, Mirror, RbdDisk, disks

LOG = logging.getLogger(__name__)

VERBS = frozenset({"mirror", "retype_and_mirror"})
#: Seconds between two looks how far a copy is.
_LOOK_EVERY = 0.5
#: Seconds between two notes in the row of how far it is.
_TOLD_EVERY = 10.0
#: Seconds for which the database is asked again and again while a guest waits.
_INSIST = 60.0
#: Seconds for which the removal of the other image is tried. A pool that is gone must not hold the volume for ever.
_PATIENCE = 600.0
_CANCELLED = "an administrator has cancelled the move"


# -- whether it can be


def refuse_shared_data(world: World, volume: models.Volume) -> None:
    """Raise InvalidVolume for a volume whose image has snapshots or clones: QEMU copies what it holds now, no more.

    Those that backups left for the next increment may go: that is then as big as a full one, and reads as much.
    """
    with world.db.read() as session:
        may_go = set(volumes.backup_snaps(session, [volume.id]))
    found = world.cluster_of(volume).outline(volume.image).snapshots
    if any(one.name not in may_go for one in found):
        raise errors.InvalidVolume(
            f"volume {volume.id} is in use, and what was made of it (snapshots, clones) would not move along"
        )


def plan(
    session: Session, volume: models.Volume, where: Backend, target: Backend, fsids: Mapping[str, str]
) -> dict[str, Any]:
    """What the intent of a move says of a volume in use. Raises InvalidVolume if it cannot be moved so."""
    table = models.Snapshot
    if session.scalar(select(table.id).where(table.volume_id == volume.id).limit(1)) is not None:
        raise errors.InvalidVolume(f"volume {volume.id} is in use and has snapshots, which would not move along")
    held = list(session.scalars(select(models.Attachment).where(models.Attachment.volume_id == volume.id)))
    if len(held) != 1:
        raise errors.InvalidVolume(f"volume {volume.id} is attached to several servers, or to none")
    [one] = held
    if not one.managed or one.server_id is None:
        raise errors.InvalidVolume(f"volume {volume.id} was plugged in by another service, which would have to move it")
    if one.status != "attached" or one.busy or one.mode == "ro":
        raise errors.InvalidVolume(f"the attachment of volume {volume.id} is {one.status}, {one.mode}; it must be rw")
    namespace = target.namespace_for(volume.project_id)
    present = {"pool": where.cluster.pool, "namespace": volume.namespace, "cluster": fsids[where.name]}
    wanted = {"pool": target.cluster.pool, "namespace": namespace, "cluster": fsids[target.name]}
    if disks.base_node(_named(volume, present)) == disks.base_node(_named(volume, wanted)):
        raise errors.InvalidVolume(f"QEMU could not tell {where.pool} from {target.pool}; rename one of the pools")
    return {"source": where.pool, "source_namespace": volume.namespace, "server": one.server_id, **wanted}


# -- how it is done


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """Where the image is, or was, or is to be."""

    pool: str
    cluster: Cluster


def move(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Do all of it, as far as it is not done yet; the columns to set. Raises MoveFailed if the volume stays."""
    backend = world.backend(arguments["host"])
    source = _Side(arguments["source"], world.cluster(arguments["source"]).within(arguments["source_namespace"]))
    target = _Side(backend.pool, backend.cluster.within(arguments["namespace"]))
    if volume.host != target.pool:
        _copy(world, volume, source, target)
    _change_over(world, volume, source, target)
    # Nobody is to read the former image any more, and nobody has it open.
    _remove(world, volume, source)
    return {
        "availability_zone": backend.availability_zone,
        "migration_status": "success",
        "clone_depth": 0,
        **limits.due(),
    }


def _copy(world: World, volume: models.Volume, source: _Side, target: _Side) -> None:
    """Bring it to the point from which on the target has all. Raises MoveFailed if it stays, the target removed."""
    if "given_up" not in _intent(volume):
        try:
            _work(world, volume, source, target)
        except errors.Unavailable:
            raise
        except errors.CinderliteError as error:  # Whatever it is, the volume is whole where the row says.
            if volume.host != target.pool:
                _note(world, volume, **_given_up(_now(world), error.message))
        if volume.host == target.pool:
            return
    if _phase(world, volume) == MOVED:  # Somebody has told QEMU to: what it uses is right.
        _arrive(world, volume, target)
        return
    _take_back(world, volume, target)


def _work(world: World, volume: models.Volume, source: _Side, target: _Side) -> None:
    """Have the guest copy the disk, and go on with the target as soon as it is written down that this has all."""
    holders.leave_off(world, volume.id)
    guest = _guest(world, volume)
    with world.db.read() as session:
        tuned = tuning.of_disk(session, volume, guest.server.metadata)
    disk = attachments.disk_in(world, volume, target.cluster, tuned)
    phase = guest.mirrored(disk).phase
    if phase == NONE:
        _make_target(world, volume, source, target, guest)
    if phase != MOVED:
        disk = _as_its_user(world, volume, target, guest, disk)
    told = -math.inf
    while phase != MOVED:
        found = guest.mirror(disk, world.settings.copy_speed, lambda: _arrive(world, volume, target))
        phase = found.phase
        if phase == COPYING:
            if time.monotonic() - told >= _TOLD_EVERY:
                told = time.monotonic()
                _tell(world, volume, found)
            jobs.checkpoint()
            time.sleep(_LOOK_EVERY)
    if volume.host != target.pool:
        _arrive(world, volume, target)


def _make_target(world: World, volume: models.Volume, source: _Side, target: _Side, guest: Guest) -> None:
    """Make an empty image like that of the volume; what an earlier try left there is not believed."""
    refuse_shared_data(world, volume)
    guest.unmirror(_named(volume, _intent(volume)))
    _discard(world, volume, target.cluster)
    target.cluster.create(volume.image, source.cluster.info(volume.image).size_bytes)
    if volume.multiattach:
        target.cluster.share(volume.image)
    length = encryption.header_bytes(volume)
    if length:
        # With the same header, QEMU writes the very bytes that the source has.
        with source.cluster.opened(volume.image) as original:
            target.cluster.write_head(volume.image, original.read(0, length))


def _as_its_user(world: World, volume: models.Volume, target: _Side, guest: Guest, disk: RbdDisk) -> RbdDisk:
    """The target's disk with who opens it. Raises GuestGone if the server was given up meanwhile."""
    attachment = _attachment(world, volume)
    if attachment is None:
        raise errors.GuestGone(guest.server.id)
    login = cephx_users.login(world, attachment, volume, host=target.pool, namespace=target.cluster.namespace)
    return dataclasses.replace(disk, user=login.user, key=login.key)


def _tell(world: World, volume: models.Volume, found: Mirror) -> None:
    percent = 100 * found.done // max(found.total, 1)
    _note(world, volume, progress=percent)
    LOG.info("volume %s: %d %% are copied to the other pool", volume.id, percent)


def _arrive(world: World, volume: models.Volume, target: _Side) -> None:
    """Write down that the target has all of the volume. Raises Superseded.

    The guest's writes wait for this, so a database that does not answer is asked again at once, for some time.
    """
    there = {"host": target.pool, "namespace": target.cluster.namespace, "migration_status": "completing"}
    deadline = time.monotonic() + _INSIST
    while True:
        try:
            _write(world, volume, **there, intent={**_intent(volume), "removing_since": _now(world)})
        except errors.DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_EVERY)
        else:
            return


def _change_over(world: World, volume: models.Volume, source: _Side, target: _Side) -> None:
    """Have the guest use the target and let go of the source. Raises MoveFailed if it turns out that it never will."""
    disk = _named(volume, _intent(volume))
    try:
        guest = _guest(world, volume)
        try:
            guest.pivot(disk)
        except errors.GuestRefused as error:
            if guest.mirrored(disk).phase not in (NONE, FAILED):
                raise errors.GuestTimeout(guest.server.id, error.message) from error
            # It writes to the source again, and to nothing else.
            intent = {**_intent(volume), **_given_up(_now(world), error.message)}
            home = {"host": source.pool, "namespace": source.cluster.namespace, "migration_status": "migrating"}
            _write(world, volume, **home, intent=intent)
            _take_back(world, volume, target)
    except errors.GuestGone:
        return  # When it comes back it gets the target.
    attachments.note_clients(world, volume)


def _take_back(world: World, volume: models.Volume, target: _Side) -> NoReturn:
    """Have the guest go on as before, and remove the target. Raises MoveFailed at the end."""
    with contextlib.suppress(errors.GuestGone):
        _guest(world, volume).unmirror(_named(volume, _intent(volume)))
    _remove(world, volume, target)
    raise errors.MoveFailed(_intent(volume)["given_up"])


def _given_up(now: float, why: str) -> dict[str, Any]:
    """What the intent says of a move that is not to be."""
    return {"given_up": why, "removing_since": now}


def _now(world: World) -> float:
    with world.db.read() as session:
        return clock.read(session)


def _remove(world: World, volume: models.Volume, side: _Side) -> None:
    """Remove the image that does not count any more, and who could open it.

    After some time without success the volume is not held for it.
    """
    cluster = side.cluster
    attachment = _attachment(world, volume)
    try:
        if attachment is not None and attachment.cephx_name is not None:
            cephx_users.revoke(world, attachment.cephx_name, side.pool, cluster.namespace)
        _discard(world, volume, cluster)
    except errors.Unavailable as error:
        now = _now(world)
        if now - _intent(volume).get("removing_since", now) < _PATIENCE:
            raise
        LOG.warning("%s/%s is left behind: %s", cluster.pool, volume.image, error)


def _discard(world: World, volume: models.Volume, cluster: Cluster) -> None:
    """Remove an image that does not count. Raises CephUnavailable while anybody has it open or needs it."""
    with world.db.read() as session:
        snaps = volumes.backup_snaps(session, [volume.id])
    try:
        image_id = cluster.trash(volume.image, holders.ours(world, volume.id))
        gone = image_id is None or cluster.purge(image_id, snaps)
    except errors.CephError as error:
        raise errors.CephUnavailable(error.message) from error
    if not gone:
        raise errors.CephUnavailable(f"a client that is gone still holds {volume.image}")


# -- what is known of it


def _intent(volume: models.Volume) -> dict[str, Any]:
    """What is to be done, and how far it is; as noted last."""
    return volume.intent or {}


def _named(volume: models.Volume, place: Mapping[str, Any]) -> RbdDisk:
    """The disk that an image of the volume makes, for what only needs names: that works without its cluster, too."""
    words = "" if volume.encrypted else None
    disk = RbdDisk(volume.id, place["pool"], volume.image, (), None, None, passphrase=words)
    return dataclasses.replace(disk, namespace=place["namespace"], cluster=place["cluster"])


def _guest(world: World, volume: models.Volume) -> Guest:
    """The server that has it open. Raises GuestGone."""
    server = _intent(volume)["server"]
    try:
        return world.guests.find(server, fresh=False)
    except errors.ServerNotFound as error:
        raise errors.GuestGone(server) from error


def _attachment(world: World, volume: models.Volume) -> models.Attachment | None:
    """The one that moves along; None once its server was given up."""
    table = models.Attachment
    with world.db.read() as session:
        return session.scalars(select(table).where(table.volume_id == volume.id, table.managed)).one_or_none()


def _phase(world: World, volume: models.Volume) -> str:
    try:
        return _guest(world, volume).mirrored(_named(volume, _intent(volume))).phase
    except errors.GuestGone:
        return NONE


def _note(world: World, volume: models.Volume, **more: Any) -> None:
    """Add to the intent. Raises Superseded."""
    _write(world, volume, intent={**_intent(volume), **more})


def _write(world: World, volume: models.Volume, **columns: Any) -> None:
    """Change the row, if the work is still ours. Raises Superseded."""
    table = models.Volume
    with world.db.write() as session:
        done = session.execute(
            update(table)
            .where(table.id == volume.id, table.lease_owner == volume.lease_owner)
            .values(**columns)
            .execution_options(synchronize_session=False)
        )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        raise errors.Superseded
    for name, value in columns.items():
        setattr(volume, name, value)


# -- cancelling


def cancel(world: World, volume_id: str) -> None:
    """Have the move of a volume in use taken back, which the service does.

    Raises VolumeNotFound, InvalidVolume if no such move is under way, or the target has all of the volume already.
    """
    with world.db.write() as session:
        volume = volumes.lock(session, volume_id)
        intent = volume.intent
        if intent is None or intent["verb"] not in VERBS:
            raise errors.InvalidVolume(f"volume {volume_id} is not being moved while it is in use")
        if volume.host == intent["host"]:
            raise errors.InvalidVolume(f"volume {volume_id} is in the other pool already")
        volume.intent = {**_given_up(clock.read(session), _CANCELLED), **intent}
        session.flush()
        if not states.stop(session, models.Volume, volume_id):
            volumes.LIFECYCLE.hasten(session, volume_id)
    world.wake.set()
