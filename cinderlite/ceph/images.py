# SPDX-License-Identifier: Apache-2.0
"""Steps on RBD images, each safe to repeat: "exists already" and "gone already" are fine.

Plain functions of an open I/O context; they run in the threads of `cluster.Cluster`, which also turns the errors of
librbd into ours. No threads, time-outs or connections here. What a newcomer gets wrong first: every step may have been
cut off half way by a time-out or a crash and is then simply run again, so it must look before it concludes. And only
an open for *writing* leaves a watcher behind: looking at an image must be a read-only open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set as AbstractSet
from typing import Any

from cinderlite import errors


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as it is now. `watchers` are the addresses of clients, other than this process, that have it open."""

    id: str
    size_bytes: int
    watchers: list[str]


def create(ioctx: Any, name: str, size_bytes: int) -> None:
    """Make an empty image; one of that name and size is as good as a new one. Raises ImageExists for another size."""
    import rbd

    try:
        rbd.RBD().create(ioctx, name, size_bytes)
    except rbd.ImageExists:
        try:
            found = _size(ioctx, name)
        except rbd.ImageNotFound:
            # A create that was cut off leaves the name without a header: nobody can open that, nor does it hold data.
            rbd.RBD().remove(ioctx, name)
            rbd.RBD().create(ioctx, name, size_bytes)
            return
        if found != size_bytes:
            raise errors.ImageExists(name) from None


def info(ioctx: Any, name: str, ourselves: AbstractSet[str]) -> ImageInfo:
    """Read id, size and foreign watchers with one read-only open."""
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:
        watchers = {str(watcher["addr"]) for watcher in image.watchers_list()}
        return ImageInfo(str(image.id()), int(image.size()), sorted(watchers - ourselves))


def trash(ioctx: Any, name: str, ourselves: AbstractSet[str]) -> str | None:
    """Move the image to the trash and return its id, which outlives the name; None when there is no trace of it.

    librbd moves an image to the trash under a running guest without a word, so the guard against that is here.
    """
    import rbd

    try:
        found = info(ioctx, name, ourselves)
        if found.watchers:
            raise errors.ImageBusy(name, ", ".join(found.watchers))
        rbd.RBD().trash_move(ioctx, name, 0)
    except rbd.ImageNotFound:
        ids = [image_id for image_id, trashed_name in trashed(ioctx) if trashed_name == name]
        return ids[-1] if ids else None
    return found.id


def purge(ioctx: Any, image_id: str) -> bool:
    """Remove an image from the trash: True when it is gone, False while a client's watch on it has not lapsed.

    Raises ImageBusy when snapshots or clones need it: waiting does not help there.
    """
    import rbd

    try:
        rbd.RBD().trash_remove(ioctx, image_id, force=True)
    except rbd.ImageNotFound:
        return True
    except rbd.ImageBusy:
        return False
    except rbd.ImageHasSnapshots:
        raise errors.ImageBusy(image_id, "its snapshots or clones") from None
    return True


def names(ioctx: Any, prefix: str) -> set[str]:
    """Names of the pool's images, without those in the trash."""
    import rbd

    return {str(name) for name in rbd.RBD().list(ioctx) if name.startswith(prefix)}


def trashed(ioctx: Any) -> list[tuple[str, str]]:
    """(id, former name) of what somebody moved to the trash, oldest first; mirroring's own entries are not ours."""
    import rbd

    entries = [entry for entry in rbd.RBD().trash_list(ioctx) if entry["source"] == "USER"]
    entries.sort(key=lambda entry: entry["deletion_time"])
    return [(str(entry["id"]), str(entry["name"])) for entry in entries]


def provisioned(ioctx: Any) -> int:
    """Sum of the sizes of all images in the pool, the trash left out, in bytes."""
    import rbd

    return int(rbd.RBD().pool_stats_get(ioctx)["image_provisioned_bytes"])


def _size(ioctx: Any, name: str) -> int:
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:
        return int(image.size())
