# SPDX-License-Identifier: Apache-2.0
"""The list of a pool's trash, read from the object in which librbd keeps it.

librbd's own list would do, but its Python binding breaks off at the first entry that belongs to a live migration, and
such an entry stays for as long as the migration does. The form is that of cls_rbd's TrashImageSpec, which only grows
at its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

#: The object in which the list is kept.
OBJECT = "rbd_trash"
_PREFIX = "id_"
_PAGE = 1000
#: Version, oldest reader and length of what follows, who moved it there, length of its former name.
_HEAD = struct.Struct("<BBIBI")
#: Seconds and nanoseconds of the move.
_MOMENT = struct.Struct("<II")
#: Somebody moved it there, or a live migration put the source aside; other numbers are librbd's own doings, too.
BY_USER, BY_MIGRATION = 0, 2


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An image in the trash; `moment` orders entries by when they came."""

    id: str
    name: str
    source: int
    moment: tuple[int, int]


def entries(ioctx: Any) -> list[Entry]:
    """All entries, oldest first."""
    import rados

    with contextlib.suppress(rados.ObjectNotFound):  # Nothing was ever there.
        return sorted(_entries(ioctx), key=lambda entry: entry.moment)
    return []


def _entries(ioctx: Any) -> Iterator[Entry]:
    import rados

    after, page = "", [("", b"")]
    while page:
        with rados.ReadOpCtx() as operation:
            found, _ = ioctx.get_omap_vals(operation, after, _PREFIX, _PAGE)
            ioctx.operate_read_op(operation, OBJECT)
            page = list(found)
        for key, value in page:
            after = key
            yield _entry(key.removeprefix(_PREFIX), value)


def _entry(image_id: str, value: bytes) -> Entry:
    *_, source, length = _HEAD.unpack_from(value)
    seconds, nanoseconds = _MOMENT.unpack_from(value, _HEAD.size + length)
    name = value[_HEAD.size : _HEAD.size + length].decode()
    return Entry(image_id, name, source, (seconds, nanoseconds))
