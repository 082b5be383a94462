# SPDX-License-Identifier: Apache-2.0
"""The data of images, written and read past the service, as a user of Ceph that nobody takes for the service."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from lab.ceph import Ceph

MIB = 2**20
#: Of an image that nobody has written to.
EMPTY = hashlib.sha256(bytes(MIB)).hexdigest()
#: Seconds after which a call on an image is given up.
_PATIENCE = "20"


class Data:
    """The first MiB of each image. What librados and librbd say is raised as an OSError, which theirs are not."""

    def __init__(self, ceph: Ceph) -> None:
        import rados

        limits = {"rados_osd_op_timeout": _PATIENCE, "rados_mon_op_timeout": _PATIENCE}
        self._client = rados.Rados(conffile=str(ceph.conf), name="client.admin", conf=limits)
        self._client.connect(30)

    def close(self) -> None:
        """End the connection."""
        self._client.shutdown()

    def write(self, pool: str, image: str) -> Iterator[str]:
        """Write something new: yields its sha256 before it is begun, and ends when it is safe."""
        data = os.urandom(16) * (MIB // 16)
        yield hashlib.sha256(data).hexdigest()
        with self._opened(pool, image, read_only=False) as opened:
            opened.write(data, 0)
            opened.flush()

    def digest(self, pool: str, image: str) -> str:
        """The sha256 of what is there."""
        with self._opened(pool, image, read_only=True) as opened:
            return hashlib.sha256(opened.read(0, MIB)).hexdigest()

    @contextlib.contextmanager
    def _opened(self, pool: str, image: str, *, read_only: bool) -> Iterator[Any]:
        import rados
        import rbd

        try:
            with self._client.open_ioctx(pool) as ioctx, rbd.Image(ioctx, image, read_only=read_only) as opened:
                yield opened
        except (rados.Error, rbd.Error) as error:
            raise OSError(str(error)) from error
