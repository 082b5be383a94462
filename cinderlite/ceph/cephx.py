# SPDX-License-Identifier: Apache-2.0
"""Making and removing cephx users; what they may do is in `rights`.

Plain functions of an open connection, run in the threads of `cluster.Cluster`. What a newcomer gets wrong first:
nobody can list users without being shown all their keys, so the service may not. It keeps a list of its own, an object
of the pool, and writes a name there *before* it makes the user; so no user is ever lost sight of. And a user's end is
not the end of who is connected as it: tickets hold for up to an hour, and only a fence ends them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cinderlite import errors
from cinderlite.ceph import checkup, images, objects, rights
from cinderlite.ceph.rights import Caps, Objects, Place

#: The list of the users that were made, an object of the pool's default namespace: user → what it is for.
REGISTER = "cinderlite.keys"


def of_image(rados: Any, image: Any, place: Place, name: str, *, read_only: bool, flattens: bool) -> Caps:
    """What opens that image, which is open, and those below it, which are looked at for that."""
    with contextlib.ExitStack() as opened:
        parents = list(_parents(rados, image, opened))
        return rights.of_image(name, _objects(rados, image, place), parents, read_only=read_only, flattens=flattens)


def _parents(rados: Any, image: Any, opened: contextlib.ExitStack) -> Iterator[Objects]:
    import rbd

    while True:
        try:
            spec, image_id = image.get_parent_image_spec(), str(image.parent_id())
        except rbd.ImageNotFound:
            return
        place = Place(str(spec["pool_name"]), str(spec["pool_namespace"]))
        ioctx = opened.enter_context(images.place(rados, place.pool, place.namespace))
        image = opened.enter_context(rbd.Image(ioctx, image_id=image_id, read_only=True))
        yield _objects(rados, image, place)


def _objects(rados: Any, image: Any, place: Place) -> Objects:
    data = int(image.data_pool_id())
    pool = str(rados.pool_reverse_lookup(data)) if data >= 0 else place.pool
    return Objects(place, str(image.id()), str(image.block_name_prefix()), pool)


# -- users


def makes(rados: Any, user: str) -> bool:
    """Whether that user, ours, may make and remove users: tried by removing one that nobody has."""
    command = {"prefix": "auth del", "entity": rights.entity(f"{rights.below(user)}check")}
    return _told(rados, command)[0] not in (errno.EACCES, errno.EPERM)


def make(rados: Any, user: str, caps: Caps) -> str:
    """The key of a user with these rights: made, or found and given them. Raises UsersRefused, CephError."""
    command = {"prefix": "auth get-or-create", "entity": rights.entity(user), "caps": caps.words}
    code, answer = _told(rados, command)
    if code == errno.EINVAL:  # It is there with others: what is below its image has changed.
        _tell(rados, {**command, "prefix": "auth caps"})
        code, answer = _told(rados, command)
    _refuse(code, command)
    return str(json.loads(answer)[0]["key"])


def remove(rados: Any, user: str) -> None:
    """Remove a user; no trace of it is fine. Raises UsersRefused, CephError."""
    _tell(rados, {"prefix": "auth del", "entity": rights.entity(user)})


def _tell(rados: Any, command: Mapping[str, Any]) -> None:
    code, _ = _told(rados, command)
    if code != errno.ENOENT:
        _refuse(code, command)


def _told(rados: Any, command: Mapping[str, Any]) -> tuple[int, bytes]:
    return checkup.command(rados, **command)


def _refuse(code: int, command: Mapping[str, Any]) -> None:
    if code in (errno.EACCES, errno.EPERM):
        raise errors.UsersRefused(command["entity"])
    if code:
        raise errors.CephError(f"The monitors refuse {command['prefix']} {command['entity']}: {os.strerror(code)}.")


# -- the list of them


def forget(ioctx: Any, users: Collection[str]) -> None:
    """Take users out of the list, which are gone."""
    objects.put_entries(ioctx, REGISTER, {}, users)
