# SPDX-License-Identifier: Apache-2.0
"""Plain objects of a pool, for what belongs to an image and is too big for its metadata."""

from __future__ import annotations

import contextlib
from typing import Any

#: Bytes of one write or read: far below what an OSD takes at once (osd_max_write_size, 90 MiB).
_PIECE = 8 * 2**20


def put(ioctx: Any, name: str, data: bytes) -> None:
    """Store `data`; a write that was cut off leaves a beginning, which the next one replaces."""
    ioctx.write_full(name, data[:_PIECE])
    for offset in range(_PIECE, len(data), _PIECE):
        ioctx.write(name, data[offset : offset + _PIECE], offset)


def get(ioctx: Any, name: str) -> bytes:
    """What is stored; nothing if there is no such object."""
    import rados

    found = bytearray()
    with contextlib.suppress(rados.ObjectNotFound):
        while piece := ioctx.read(name, _PIECE, len(found)):
            found += piece
    return bytes(found)


def drop(ioctx: Any, name: str) -> None:
    """Remove an object; no trace of it is fine."""
    import rados

    with contextlib.suppress(rados.ObjectNotFound):
        ioctx.remove_object(name)
