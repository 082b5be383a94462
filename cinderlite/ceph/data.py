# SPDX-License-Identifier: Apache-2.0
"""The bytes of an open image, in pieces of CHUNK_BYTES, for long work: backups, copies, images.

What a newcomer gets wrong first: only `zero` makes sure that zeros are read afterwards. librbd skips a discard that
does not cover a whole object.
"""

from __future__ import annotations

from typing import Any

#: Bytes of a piece: the size of an object of most images, so that a piece changes or does not as a whole.
CHUNK_BYTES = 4 * 2**20


class OpenImage:
    """An open image, or an open snapshot of one, which can only be read. Offsets and lengths are in bytes."""

    def __init__(self, image: Any, snap_id: int | None) -> None:
        self._image = image
        self._snap_id = snap_id

    @property
    def size_bytes(self) -> int:
        """How big it is now."""
        return int(self._image.size())

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer at the end."""
        length = min(length, max(self.size_bytes - offset, 0))
        return bytes(self._image.read(offset, length)) if length else b""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        self._image.write(data, offset)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, giving its space back where that can be."""
        length = min(length, max(self.size_bytes - offset, 0))
        if length:
            self._image.write_zeroes(offset, length)

    def flush(self) -> None:
        """Make sure that what was written is in the cluster."""
        self._image.flush()

    def resize(self, size_bytes: int) -> None:
        """Make it exactly that big; what is beyond is lost."""
        if self.size_bytes != size_bytes:
            self._image.resize(size_bytes)

    def chunks(self, since: str | None = None) -> list[int] | None:
        """Numbers of the pieces that hold data, or that may differ from those of an older snapshot of it.

        None if there is no snapshot `since`, or if it is not older than what is open.
        """
        if since is not None and not self._has_older(since):
            return None
        found: set[int] = set()

        def note(offset: int, length: int, _exists: bool) -> None:
            found.update(range(offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES)))

        self._image.diff_iterate(0, self.size_bytes, since, note, include_parent=True, whole_object=True)
        return sorted(found)

    def _has_older(self, snap: str) -> bool:
        ids = {str(one["name"]): int(one["id"]) for one in self._image.list_snaps()}
        return snap in ids and (self._snap_id is None or ids[snap] < self._snap_id)

    def note(self, key: str) -> str | None:
        """A note that `set_note` left at the image."""
        return dict(self._image.metadata_list()).get(key)

    def set_note(self, key: str, value: str) -> None:
        """Leave a note at the image, which is none of its data."""
        self._image.metadata_set(key, value)
