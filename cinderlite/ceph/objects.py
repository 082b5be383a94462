# SPDX-License-Identifier: Apache-2.0
"""Plain objects of a pool, for what is too big for an image's metadata or belongs to no image: data, or entries."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Any

#: Bytes of one write or read: far below what an OSD takes at once (osd_max_write_size, 90 MiB).
_PIECE = 8 * 2**20
#: Entries of one read; an OSD gives no more than 1024 at once.
_PAGE = 1000


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


def put_entries(ioctx: Any, name: str, entries: Mapping[str, bytes], gone: Collection[str]) -> None:
    """Store entries of an object and remove those that are `gone`, all at once; no trace of these is fine."""
    import rados

    # Without entries to store the object need not be there.
    with rados.WriteOpCtx() as operation, contextlib.suppress(*([] if entries else [rados.ObjectNotFound])):
        if entries:
            ioctx.set_omap(operation, tuple(entries), tuple(entries.values()))
        if gone:
            ioctx.remove_omap_keys(operation, tuple(gone))
        ioctx.operate_write_op(operation, name)


def has_entry(ioctx: Any, name: str, key: str) -> bool:
    """Whether an object has an entry; not if there is no such object."""
    import rados

    with contextlib.suppress(rados.ObjectNotFound), rados.ReadOpCtx() as operation:
        found, _ = ioctx.get_omap_vals_by_keys(operation, (key,))
        ioctx.operate_read_op(operation, name)
        return any(True for _ in found)
    return False


def entries(ioctx: Any, name: str) -> dict[str, bytes]:
    """All entries of an object by key; none if there is no such object."""
    import rados

    found: dict[str, bytes] = {}
    after = ""
    with contextlib.suppress(rados.ObjectNotFound):
        while True:
            with rados.ReadOpCtx() as operation:
                page, _ = ioctx.get_omap_vals(operation, after, "", _PAGE)
                ioctx.operate_read_op(operation, name)
                # The binding has None for a value of no bytes.
                some = {key: value or b"" for key, value in page}
            if not some:
                break
            found |= some
            after = max(some)
    return found
