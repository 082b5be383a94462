# SPDX-License-Identifier: Apache-2.0
"""Pure: what cephx users may do, in Ceph's words: who opens one image or a namespace, and the service that makes them.

What a newcomer gets wrong first:

* `x` in a right allows methods of the OSDs that *write*, whether or not `w` is there. What is only to be read gets
  `class-read`. And "by prefix" holds for whatever begins so, the reason for the dot after an image's data.
* Who may make a user may give it anything. So the service's right to do so says of what form the rights must be that
  it gives, on every kind of daemon; one that is not mentioned there could get all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

#: Enough to connect and to learn where objects are. `profile rbd` lets one also cut off clients, as breaking a dead
#: one's lock takes, which only who writes needs.
_LOOKS = ", ".join(f"allow service {one} r" for one in ("mon", "osd", "pg"))
_WRITES = "profile rbd"
_READ, _WRITE = "r class-read", "rwx"
#: QEMU opens for writing what it only reads, too, and so watches the header, which is to write to it.
_WATCH = "rw class-read"
#: What tells the name of an image by its id, which opening a parent asks for; listing is another method.
_NAMES = {"dir_get_name": "rbd_directory", "trash_get": "rbd_trash"}
#: The settings of a pool, which every open asks for; and leaving a parent, which is the end of flattening.
_SETTINGS, _LEAVE = "metadata_list", "child_detach"
#: Whether a namespace is there, which QEMU asks for before it opens an image in one.
_EXISTS = "dir_state_assert"
#: What is given of all else, as something has to be for a right to make users that excludes more.
_NOTHING = {"mgr": "allow service nothing r", "mds": "allow r path=/nothing"}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A pool's namespace, "" for the default one, as rights name it."""

    pool: str
    namespace: str

    def __str__(self) -> str:
        return f'pool={self.pool} namespace="{self.namespace}"'


@dataclasses.dataclass(frozen=True, slots=True)
class Objects:
    """Where an image is; its data begin with `data`, in a pool of their own maybe."""

    place: Place
    image_id: str
    data: str
    data_pool: str


@dataclasses.dataclass(frozen=True, slots=True)
class Caps:
    """Rights on the monitors and on the OSDs."""

    mon: str
    osd: str

    @property
    def words(self) -> list[str]:
        """As commands have them."""
        return ["mon", self.mon, "osd", self.osd, *(word for pair in _NOTHING.items() for word in pair)]


def entity(user: str) -> str:
    """As commands call a user."""
    return f"client.{user}"


def below(user: str) -> str:
    """How the names begin of the users that the service's own user may make."""
    return f"{user}."


def of_image(name: str, image: Objects, parents: Sequence[Objects], *, read_only: bool, flattens: bool) -> Caps:
    """What opens an image by its name: its own objects, and to read those below it if it is a clone, the next first.

    With `flattens` it may be made whole by who has it open, and so be crossed off at its parent, as may any other
    clone of that.
    """
    found = [f"allow {_READ} {image.place} object_prefix rbd_id.{name}"]
    found += _objects(image, _READ, _WATCH) if read_only else _objects(image, _WRITE, _WRITE)
    for parent in parents:
        found += _objects(parent, _READ, _READ)
    if flattens and parents:
        found.append(f"allow class rbd {_LEAVE} {parents[0].place} object_prefix rbd_header.{parents[0].image_id}")
    found += _names({parent.place for parent in parents})
    if image.place.namespace:
        found.append(f"allow class rbd {_EXISTS} {image.place} object_prefix rbd_directory")
    pools = sorted({one.place.pool for one in (image, *parents)})
    found += [f"allow class rbd {_SETTINGS} {Place(pool, '')} object_prefix rbd_info" for pool in pools]
    return Caps(_LOOKS if read_only else _WRITES, ", ".join(found))


def _objects(image: Objects, how: str, header: str) -> Iterator[str]:
    yield f"allow {how} {Place(image.data_pool, image.place.namespace)} object_prefix {image.data}."
    yield f"allow {header} {image.place} object_prefix rbd_header.{image.image_id}"
    yield f"allow {how} {image.place} object_prefix rbd_object_map.{image.image_id}"


def _names(places: Iterable[Place]) -> Iterator[str]:
    for place in sorted(places, key=str):
        for method, prefix in _NAMES.items():
            yield f"allow class rbd {method} {place} object_prefix {prefix}"


def of_namespace(place: Place) -> Caps:
    """What opens all images of a namespace, and to read those of the default one: images for all are there."""
    shared = Place(place.pool, "")
    return Caps(_WRITES, f"profile rbd {place}, profile rbd-read-only {shared}")


# -- the service's own


def of_service(
    user: str, pools: Sequence[str], read_only: Collection[str] = (), *, makes_users: bool = True
) -> list[str]:
    """All that the service's user needs, as pairs of a daemon's kind and what is allowed there."""
    mine = ", ".join(
        [f"profile rbd pool={pool}" for pool in pools] + [f"profile rbd-read-only pool={pool}" for pool in read_only]
    )
    mon = f"{_WRITES}, {_makes_users(user, pools, read_only)}" if makes_users else _WRITES
    return ["mon", mon, "osd", mine, "mgr", mine]


def _makes_users(user: str, pools: Sequence[str], read_only: Collection[str]) -> str:
    """The right to make users like those above, no others, and to remove them."""
    grant = _any_grant(pools, [*pools, *read_only])
    allowed = {"mon": f"{_WRITES}|{_LOOKS}", "osd": f"({grant})(, ({grant}))*"}
    given = "".join(f" caps_{kind} regex '{pattern}'" for kind, pattern in allowed.items())
    given += "".join(f" caps_{kind}='{only}'" for kind, only in _NOTHING.items())
    whom = f"with entity prefix {entity(below(user))}"
    return ", ".join(
        [
            f'allow command "auth get-or-create" {whom}{given}',
            f'allow command "auth caps" {whom}{given}',
            f'allow command "auth del" {whom}',
        ]
    )


def _any_grant(pools: Collection[str], readable: Collection[str]) -> str:
    """A regular expression for one right on OSDs of those that are given above."""
    mine, theirs = _one_of(pools), _one_of(readable)
    namespace = 'namespace="[A-Za-z0-9_.-]*"'
    reads = f"({_READ}|class rbd ({'|'.join([*_NAMES, _SETTINGS, _LEAVE, _EXISTS])}))"
    objects = (
        f"allow (({_WRITE}|{_WATCH}) pool={mine}|{reads} pool={theirs}) {namespace} object_prefix rbd_[A-Za-z0-9_.-]+"
    )
    return f"{objects}|profile rbd pool={mine} {namespace}|profile rbd-read-only pool={theirs} {namespace}"


def _one_of(pools: Collection[str]) -> str:
    names = [re.sub(r"[^A-Za-z0-9_-]", lambda found: f"[{found[0]}]", pool) for pool in dict.fromkeys(pools)]
    return f"({'|'.join(names)})"
