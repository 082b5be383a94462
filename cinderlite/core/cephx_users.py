# SPDX-License-Identifier: Apache-2.0
"""As which cephx user a guest opens an image: one of the attachment's own, one of its project's, or the service's.

An attachment's user is called SERVICE.DATABASE.ATTACHMENT.PLACE: SERVICE is the back end's rbd_user, DATABASE tells the
services apart that share a cluster, PLACE the pools and namespaces that a volume may move between. DATABASE.ATTACHMENT
is in the attachment's row (`cephx_name`), and the row stays until the user is gone; so whoever dies, the row's own
recovery removes it.

What a newcomer gets wrong: the row is not all. A user is begun beside the acceptance of its attachment, and whoever
dies then leaves one without a row; a database may be lost or put back; monitors that stood still may make a user that
was given up before. So each is also in a list in its pool, and `sweep` removes those of ours that nothing explains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import select

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster, HeldImage
from cinderlite.context import Backend, World
from cinderlite.core import leftovers as taken
from cinderlite.core import records
from cinderlite.db import models

LOG = logging.getLogger(__name__)

#: Words of rbd_attachment_keys.
AUTO, ATTACHMENT, PROJECT, SERVICE = "auto", "attachment", "project", "service"
#: Seconds for which nothing explains a user that is removed for that: more than an acceptance takes.
UNEXPLAINED_FOR = 30.0
#: Characters of the digests in names.
_DIGITS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """A cephx user, without "client.", and its key."""

    user: str | None
    key: str | None = dataclasses.field(repr=False)


# -- what they are called


def name(world: World, attachment_id: str, host: str, namespace: str) -> str | None:
    """As Attachment.cephx_name, of one whose image is there; None if it gets no user of its own. Raises Unavailable."""
    backend = world.backend(host)
    if not _has_own(backend, backend.cluster.within(namespace)):
        return None
    return f"{_database(world)}.{attachment_id}"


def user_of(cephx_name: str, cluster: Cluster) -> str:
    """The user of an attachment whose image is in that pool and namespace."""
    return f"{cluster.user}.{cephx_name}.{_digest(f'{cluster.pool}/{cluster.namespace}')}"


def _project_user(world: World, cluster: Cluster) -> str:
    return f"{cluster.user}.{_database(world)}.project.{_digest(f'{cluster.pool}/{cluster.namespace}')}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _database(world: World) -> str:
    with world.db.look() as connection:
        found = connection.scalar(select(models.Recorder.database_id))
    if found is None:
        with world.db.write() as session:
            found = records.identity(session).database_id
    return found.replace("-", "")[:_DIGITS]


# -- making and removing them


def _has_own(backend: Backend, cluster: Cluster) -> bool:
    """Whether an attachment gets a user of its own there. Raises Unavailable."""
    if backend.attachment_keys == ATTACHMENT:
        return True
    return backend.attachment_keys == AUTO and cluster.makes_users()


def login(
    world: World,
    attachment: models.Attachment,
    volume: models.Volume,
    *,
    host: str,
    namespace: str,
    held: Callable[[], HeldImage] | None = None,
) -> Login:
    """Who opens the volume's image there for that attachment: the same whenever it is asked.

    `held` tells the image, if it is open or will be. Raises ImageNotFound, UsersRefused, Unavailable.
    """
    backend = world.backend(host)
    cluster = backend.cluster.within(namespace)
    try:
        if _has_own(backend, cluster):
            return _own(world, attachment, volume, backend, cluster, held=held)
        if backend.attachment_keys == PROJECT and cluster.namespace:
            return _of_project(world, volume, cluster)
    except errors.UsersRefused as error:  # As when it may not let others read the pool that a clone was made from.
        if backend.attachment_keys != AUTO:
            raise
        LOG.warning("volume %s is opened as client.%s: %s", volume.id, cluster.user, error)
    return Login(cluster.user, cluster.key())


def _own(
    world: World,
    attachment: models.Attachment,
    volume: models.Volume,
    backend: Backend,
    cluster: Cluster,
    *,
    held: Callable[[], HeldImage] | None,
) -> Login:
    if attachment.cephx_name is None:
        _note(world, attachment)
    user = user_of(str(attachment.cephx_name), cluster)
    what = {"attachment": attachment.id, "volume": volume.id, "server": attachment.server_id}
    cluster.note_user(user, json.dumps(what).encode())  # While the image is being opened.
    key = cluster.user_of_image(
        volume.image,
        user,
        read_only=attachment.mode == "ro",
        # librbd has that done by who has the lock.
        flattens=volume.restored_from is not None or volume.clone_depth > backend.max_clone_depth,
        held=None if held is None else held(),
    )
    return Login(user, key)


def _note(world: World, attachment: models.Attachment) -> None:
    """Write down that an attachment of before gets a user now."""
    attachment.cephx_name = f"{_database(world)}.{attachment.id}"
    with world.db.write() as session:
        session.get_one(models.Attachment, attachment.id).cephx_name = attachment.cephx_name


def _of_project(world: World, volume: models.Volume, cluster: Cluster) -> Login:
    user = _project_user(world, cluster)
    what = {"project": volume.project_id, "namespace": cluster.namespace}
    return Login(user, cluster.user_of_namespace(user, json.dumps(what).encode()))


def revoke(world: World, cephx_name: str, host: str, namespace: str, *, made: bool = True) -> None:
    """Remove an attachment's user for a pool, now that no guest needs it. Raises Unavailable.

    If it is not sure that it was `made`, it may be made after that, and `sweep` looks for it once more. What Ceph
    refuses is left to that, too: the guest has let the disk go, and nobody may say that it has it still.
    """
    try:
        cluster = world.cluster(host).within(namespace)
        cluster.remove_user(user_of(cephx_name, cluster), for_good=made)
    except (errors.BackendMissing, errors.CephError) as error:
        LOG.warning("a cephx user of %s is left: %s", cephx_name, error)


def refuse_open_clones(world: World, volume: models.Volume) -> None:
    """Raise InvalidVolume if a guest has a clone of a volume open with a right to read it where it is, and only there.

    Of a volume that moves, Ceph shows its clones the new place at once; the guest would be refused there.
    """
    try:
        children = world.cluster_of(volume).portrait(volume.image).children or ()
    except errors.ImageNotFound:
        return
    clones = [one.image.removeprefix("volume-") for one in children]
    table = models.Attachment
    with world.db.read() as session:
        open_ = select(table.volume_id).where(table.volume_id.in_(clones), table.cephx_name.is_not(None)).limit(1)
        found = session.scalar(open_)
    if found is not None:
        raise errors.InvalidVolume(f"volume {found}, which shares its data, is attached; detach that one first")


# -- what nothing explains


@dataclasses.dataclass(frozen=True, slots=True)
class Swept:
    """The users that nothing explains: how many were `removed`, and since when the others are seen (monotonic, s).

    A user can be made shortly before its attachment is accepted. So whom nothing explains is removed when that has
    been so for longer than an acceptance takes.
    """

    removed: int = 0
    suspects: Mapping[str, float] = dataclasses.field(default_factory=dict)
    #: Those that stay, since it is the database that forgot their attachments.
    kept: frozenset[str] = frozenset()


def sweep(world: World, before: Swept, most: float = UNEXPLAINED_FOR) -> Swept:
    """Remove the users of ours that for `most` seconds no attachment has had and no project needed."""
    removed, suspects, kept = 0, dict[str, float](), set[str]()
    for backend in world.backends.values():
        try:
            looked = time.monotonic()
            for user, what in leftovers(world, backend).items():
                since = before.suspects.get(user, looked)
                if user not in before.suspects or looked - since < most:
                    suspects[user] = since
                elif may_be_open(world, backend, what):
                    suspects[user] = looked
                    kept.add(user)
                    if user not in before.kept:
                        LOG.warning(
                            "cephx user %s stays: the database has no attachment of volume %s to server %s, and Ceph "
                            "has its record; cinderlite-manage rebuild --add adds it",
                            user, what.get("volume"), what.get("server"),
                        )  # fmt: skip
                else:
                    removed += _remove(world, backend, user)
        except (errors.Unavailable, errors.BackendError) as error:
            if isinstance(error, errors.DatabaseUnavailable):
                raise
            LOG.warning("cephx users of pool %s: %s", backend.cluster.pool, error)
            suspects = {**before.suspects, **suspects}
            kept |= before.kept
    return Swept(removed, suspects, frozenset(kept))


def _remove(world: World, backend: Backend, user: str) -> bool:
    if user not in leftovers(world, backend, user):  # Somebody may need it since.
        return False
    backend.cluster.remove_user(user)
    LOG.warning("cephx user %s, which nothing explains, is there no more", user)
    return True


def may_be_open(world: World, backend: Backend, what: Mapping[str, Any]) -> bool:
    """Whether it is the database that forgot an attachment, since it was put back to what it was before that.

    Then the attachment's record is there, which goes with a detach, and its server has the volume or cannot be asked.
    What the server says is not enough: one that was broken into could keep for ever what it was to give back.
    """
    attachment_id, volume_id, server_id = (str(what.get(key)) for key in ("attachment", "volume", "server"))
    with world.db.read() as session:
        if session.get(models.Attachment, attachment_id) is not None or taken.of(session, server_id, volume_id):
            return False  # It is of where the volume was, or was taken from the server by force.
    key = records.key_of(models.Attachment.__tablename__, attachment_id)
    if not backend.cluster.has_entry(records.object_of(attachment_id), key):
        return False
    try:
        return volume_id in world.guests.find(server_id, fresh=False).disks()
    except errors.GuestGone:
        return False
    except errors.ServerNotFound:
        return not world.guests.ended(server_id, math.inf)
    except (errors.Unavailable, errors.GuestRefused):
        return True


def leftovers(world: World, backend: Backend, only: str = "") -> dict[str, dict[str, Any]]:
    """The users of this service in a back end's list that nothing explains, with what the list says of each."""
    # The list first: a row goes after its user.
    listed = backend.cluster.users()
    ours = f"{backend.cluster.user}.{_database(world)}."
    mine = {user: _read(what) for user, what in listed.items() if user.startswith(ours) and only in ("", user)}
    return {user: mine[user] for user in _unexplained(world, backend, mine)} if mine else {}


def _read(what: bytes) -> dict[str, Any]:
    try:
        found = json.loads(what)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _unexplained(world: World, backend: Backend, users: dict[str, dict[str, Any]]) -> Iterator[str]:
    table, volume = models.Attachment, models.Volume
    there = volume.deleted.is_(False)
    named = volume.id.in_({str(what.get("volume")) for what in users.values()})
    with world.db.read() as session:
        rows = {row.id: row for row in session.scalars(select(table).where(table.managed))}
        volumes = {row.id: row for row in session.scalars(select(volume).where(there, named))}
        spaces = set(session.scalars(select(volume.namespace).where(there, volume.host == backend.pool).distinct()))
    attached = {(row.volume_id, row.server_id) for row in rows.values()}
    for user, what in users.items():
        row, of = rows.get(str(what.get("attachment"))), volumes.get(str(what.get("volume")))
        if "project" in what:
            if what.get("namespace") not in spaces:
                yield user
        elif row is None:
            # A rebuilt database may know by another id what the guest still has open as that user.
            if (what.get("volume"), what.get("server")) not in attached:
                yield user
        elif of is not None and not (row.busy or of.busy) and not _is_its(world, user, row, of):
            yield user  # Of where the volume was before it moved.


def _is_its(world: World, user: str, attachment: models.Attachment, volume: models.Volume) -> bool:
    return attachment.cephx_name is not None and user == user_of(attachment.cephx_name, world.cluster_of(volume))
