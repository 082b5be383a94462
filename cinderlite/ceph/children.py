# SPDX-License-Identifier: Apache-2.0
"""The clones of a snapshot, as its image's header counts them, by which librbd knows that the snapshot is needed.

librbd's own list would do, but it looks for clones in the old format, too, in all pools of the cluster, and breaks off
at the first that our user may not read. The form is that of cls_rbd's ChildImageSpec, which only grows at its end.
"""

from __future__ import annotations

import struct
from typing import Any

#: Bytes of an answer at most; a clone takes some 50.
_MOST = 2**22
_SNAP = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
#: Version, oldest reader and length of what follows: pool, length of the image's id.
_HEAD = struct.Struct("<BBI")
_CHILD = struct.Struct("<qI")


def ids(ioctx: Any, image_id: str, snap_id: int) -> set[str]:
    """Ids of the images that were cloned from a snapshot and still need it."""
    import rados

    try:
        _, answer = ioctx.execute(f"rbd_header.{image_id}", "rbd", "children_list", _SNAP.pack(snap_id), _MOST)
    except rados.ObjectNotFound:  # It never had any.
        return set()
    found, [count], at = set(), _COUNT.unpack_from(answer), _COUNT.size
    for _ in range(count):
        *_, length = _HEAD.unpack_from(answer, at)
        at += _HEAD.size
        _, letters = _CHILD.unpack_from(answer, at)
        found.add(answer[at + _CHILD.size : at + _CHILD.size + letters].decode())
        at += length
    return found
