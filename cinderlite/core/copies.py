# SPDX-License-Identifier: Apache-2.0
"""Copying what RBD cannot clone, piece by piece. Each try begins anew and writes the same: it may end anywhere."""

from __future__ import annotations

from cinderlite import jobs
from cinderlite.ceph.cluster import Cluster
from cinderlite.ceph.data import CHUNK_BYTES


def write_over(cluster: Cluster, name: str, there: Cluster, source: str, snap: str) -> None:
    """Make an image hold what a snapshot of another, which is `there`, holds, and zeros behind that.

    Raises ImageNotFound.
    """
    with there.opened(source, snap) as held, cluster.opened(name, write=True) as target:
        for number in sorted({*(held.chunks() or ()), *(target.chunks() or ())}):
            jobs.checkpoint()
            offset = number * CHUNK_BYTES
            data = held.read(offset, CHUNK_BYTES)
            if data.strip(b"\0"):
                target.write(offset, data)
            else:
                target.zero(offset, CHUNK_BYTES)
        target.flush()
