# SPDX-License-Identifier: Apache-2.0
"""The clones of a snapshot, as its image's header counts them, by which librbd knows that the snapshot is needed.

librbd's own list would do, but it looks for clones in the old format, too, in all pools of the cluster, and breaks off
at the first that our user may not read. The form is that of cls_rbd's ChildImageSpec, which only grows at its end.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

#: Bytes of an answer at most; a clone takes some 50.
_MOST = 2**22
_SNAP = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
#: Version, oldest reader and length of what follows: pool, the image's id and, since version 2, its namespace.
_HEAD = struct.Struct("<BBI")
_POOL = struct.Struct("<q")
_LENGTH = struct.Struct("<I")


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """An image that was cloned from a snapshot, as that one's image counts it (`told`)."""

    pool: int
    namespace: str
    id: str
    told: bytes


def ids(ioctx: Any, image_id: str, snap_id: int) -> set[str]:
    """Ids of the images that were cloned from a snapshot and still need it."""
    return {child.id for child in of(ioctx, image_id, snap_id)}


def of(ioctx: Any, image_id: str, snap_id: int) -> list[Child]:
    """Those images."""
    import rados

    try:
        _, answer = ioctx.execute(_header(image_id), "rbd", "children_list", _SNAP.pack(snap_id), _MOST)
    except rados.ObjectNotFound:  # It never had any.
        return []
    found, [count], at = [], _COUNT.unpack_from(answer), _COUNT.size
    for _ in range(count):
        *_, length = _HEAD.unpack_from(answer, at)
        end = at + _HEAD.size + length
        found.append(_read(answer[at:end]))
        at = end
    return found


def _read(told: bytes) -> Child:
    version, *_ = _HEAD.unpack_from(told)
    [pool] = _POOL.unpack_from(told, _HEAD.size)
    child_id, at = _text(told, _HEAD.size + _POOL.size)
    namespace = _text(told, at)[0] if version > 1 else ""
    return Child(pool, namespace, child_id, told)


def _text(data: bytes, at: int) -> tuple[str, int]:
    [length] = _LENGTH.unpack_from(data, at)
    begin = at + _LENGTH.size
    return data[begin : begin + length].decode(), begin + length


def is_there(connection: Any, child: Child) -> bool:
    """Whether there is such an image, if only in the trash; what our user may not look at is."""
    import rados

    try:
        with connection.open_ioctx2(child.pool) as ioctx:
            ioctx.set_namespace(child.namespace)
            ioctx.stat(_header(child.id))
    except rados.ObjectNotFound:
        return False
    except rados.PermissionError:
        return True
    return True


def cross_off(ioctx: Any, image_id: str, snap_id: int, child: Child) -> None:
    """Have an image count a clone no more, which is not there."""
    ioctx.execute(_header(image_id), "rbd", "child_detach", _SNAP.pack(snap_id) + child.told)


def _header(image_id: str) -> str:
    return f"rbd_header.{image_id}"
