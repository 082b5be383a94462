# SPDX-License-Identifier: Apache-2.0
"""Looking at an image from all sides, for an operator; nothing here writes.

Plain functions of an open I/O context, as in `images`. What a newcomer gets wrong first: an image that a live
migration holds must not be opened by its name, which can hang for ever. So whoever looks asks `images.migration`
before, and asks here only for images that are in none, or in one whose target is complete enough to be opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from cinderlite.ceph import images
from cinderlite.ceph import trash as rbd_trash

USER, GROUP, TRASH, MIRROR = "user", "group", "trash", "mirror"
_KINDS = (USER, GROUP, TRASH, MIRROR)
#: By bit, as `rbd info` calls them.
_FEATURES = (
    "layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "journaling", "data-pool",
    "operations", "migrating", "non-primary",
)  # fmt: skip
_FLAGS = ("object map invalid", "fast diff invalid")
_FAST_DIFF = 1 << _FEATURES.index("fast-diff")
#: Seconds and nanoseconds, as Ceph encodes a moment.
_MOMENT = struct.Struct("<II")


@dataclasses.dataclass(frozen=True, slots=True)
class Snap:
    """A snapshot of any kind; `origin` is what a user called one in the trash, or which snapshot of a group it is."""

    id: int
    name: str
    kind: str
    size_bytes: int
    origin: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Outline:
    """What an audit compares."""

    id: str
    size_bytes: int
    snapshots: list[Snap]


@dataclasses.dataclass(frozen=True, slots=True)
class Relative:
    """A parent or a child; of a parent the snapshot too. `trashed` is None where we may not look."""

    pool: str
    image: str
    id: str
    snap: str | None = None
    trashed: bool | None = False
    namespace: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Portrait:
    """All that an image is, the next parent first.

    `used_bytes` is None where only reading every object would tell, `children` where our user may not look for them.
    """

    id: str
    size_bytes: int
    used_bytes: int | None
    features: list[str]
    flags: list[str]
    parents: list[Relative]
    children: list[Relative] | None
    snapshots: list[Snap]
    watchers: list[str]
    lock_owners: list[str]


def outline(ioctx: Any, name: str) -> Outline:
    """Id, size and snapshots of an image, with one open."""
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:
        return Outline(str(image.id()), int(image.size()), list(_snapshots(image)))


def portrait(rados: Any, ioctx: Any, name: str, image_id: str | None, ourselves: AbstractSet[str]) -> Portrait:
    """Look at an image, found by its id if that is given, as one in the trash must be."""
    import rbd

    chosen: dict[str, Any] = {"name": name} if image_id is None else {"image_id": image_id}
    with rbd.Image(ioctx, read_only=True, **chosen) as image:
        features = int(image.features())
        return Portrait(
            id=str(image.id()),
            size_bytes=int(image.size()),
            used_bytes=_used(image) if features & _FAST_DIFF and not image.flags() else None,
            features=_words(features, _FEATURES),
            flags=_words(int(image.flags()), _FLAGS),
            parents=list(_parents(rados, image)),
            children=_children(image),
            snapshots=list(_snapshots(image)),
            watchers=sorted({str(one["addr"]) for one in image.watchers_list()} - ourselves),
            lock_owners=_lock_owners(image),
        )


def created(ioctx: Any, name: str) -> float:
    """When an image was made by the clock of the OSD that made it, in seconds since the epoch."""
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:
        header = f"rbd_header.{image.id()}"
    # librbd's binding has it too, but in whole seconds and in one or another time zone.
    _, encoded = ioctx.execute(header, "rbd", "get_create_timestamp", b"")
    seconds, nanoseconds = _MOMENT.unpack(encoded[: _MOMENT.size])
    return float(seconds + nanoseconds / 1e9)


def _words(bits: int, names: tuple[str, ...]) -> list[str]:
    return [name for number, name in enumerate(names) if bits & 1 << number]


def _snapshots(image: Any) -> Iterator[Snap]:
    for one in image.list_snaps():
        kind = _KINDS[one["namespace"]] if one["namespace"] < len(_KINDS) else str(one["namespace"])
        origin = None
        if kind == TRASH:
            origin = str(one["trash"]["original_name"])
        elif kind == GROUP:
            origin = str(one["group"]["snap_name"])
        yield Snap(int(one["id"]), str(one["name"]), kind, int(one["size"]), origin)


def _used(image: Any) -> int:
    """Bytes of the image's own objects, its parents' left out; quick only with a valid object map."""
    found = 0

    def note(_offset: int, length: int, exists: bool) -> None:
        nonlocal found
        found += length if exists else 0

    image.diff_iterate(0, image.size(), None, note, include_parent=False, whole_object=True)
    return found


def _lock_owners(image: Any) -> list[str]:
    """Who has the exclusive lock, or one that somebody took by hand; lock_get_owners asks for an open to write."""
    held = image.list_lockers()
    return [str(address) for _client, _cookie, address in held["lockers"]] if held else []


def _children(image: Any) -> list[Relative] | None:
    import rbd

    try:
        return [
            Relative(
                str(one["pool"]),
                str(one["image"]),
                str(one["id"]),
                trashed=bool(one["trash"]),
                namespace=str(one["pool_namespace"]),
            )
            for one in image.list_children2()
        ]
    except rbd.PermissionError:  # One is in another pool.
        return None


def _parents(rados: Any, image: Any) -> Iterator[Relative]:
    """The chain upwards, as far as our user may look."""
    import rbd

    with contextlib.ExitStack() as opened:
        while True:
            try:
                spec, image_id = image.get_parent_image_spec(), str(image.parent_id())
            except rbd.ImageNotFound:
                return
            pool, namespace, name = (str(spec[key]) for key in ("pool_name", "pool_namespace", "image_name"))
            ioctx = opened.enter_context(images.place(rados, pool, namespace))
            try:
                image = opened.enter_context(rbd.Image(ioctx, image_id=image_id, read_only=True))
            except rbd.PermissionError:
                yield Relative(pool, name, image_id, str(spec["snap_name"]), None, namespace)
                return
            named = {one.name: one.origin for one in _snapshots(image) if one.kind == TRASH}
            snap = named.get(str(spec["snap_name"])) or str(spec["snap_name"])
            trashed = image_id in {entry.id for entry in rbd_trash.entries(ioctx)}
            yield Relative(pool, name, image_id, snap, trashed, namespace)
