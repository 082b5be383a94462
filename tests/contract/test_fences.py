# SPDX-License-Identifier: Apache-2.0
"""Fences, on the fake and on a real cluster: who is fenced writes nothing more, and everybody else does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cinderlite.ceph.cluster import Cluster
from fakes_cluster import FakeCluster
from lab.ceph import Ceph
from lab.process import wait

SIZE = 64 * 2**20
DAY = 86400


@pytest.fixture
def name(cluster: Cluster) -> str:
    """A new image."""
    made = f"volume-{uuid.uuid4()}"
    cluster.create(made, SIZE)
    return made


@pytest.fixture
def writers(ceph: Ceph, name: str) -> Iterator[list[Any]]:
    """Two other clients with the image open; each has a connection of its own, as QEMU's nodes have."""
    import rados
    import rbd

    made = []
    for _ in range(2):
        client = rados.Rados(conffile=str(ceph.conf), name=f"client.{ceph.user}")
        client.connect()
        made.append((client, client.open_ioctx(ceph.pool)))
    images = [rbd.Image(ioctx, name) for _, ioctx in made]
    yield images
    for image in images:
        image.close()
    for client, ioctx in made:
        ioctx.close()
        client.shutdown()


def test_a_fenced_client_is_seen_no_more(request: pytest.FixtureRequest, cluster: Cluster, name: str) -> None:
    if isinstance(cluster, FakeCluster):
        cluster.watchers[name] = ["192.0.2.7:0/1", "192.0.2.7:0/2"]
    else:
        request.getfixturevalue("writers")
    gone, stays = cluster.info(name).watchers
    cluster.fence([gone], DAY)
    assert cluster.info(name).watchers == [stays]
    assert gone in cluster.fenced()
    cluster.fence([gone], DAY)
    assert stays not in cluster.fenced()


def test_nothing_of_ours_is_ever_fenced(cluster: Cluster, name: str) -> None:
    ours = cluster.addresses if isinstance(cluster, FakeCluster) else cluster._ourselves()
    assert ours
    cluster.fence(ours, DAY)
    assert not ours & cluster.fenced()
    cluster.grow(name, 2 * SIZE)
    assert cluster.info(name).size_bytes == 2 * SIZE


@pytest.mark.real
@pytest.mark.parametrize("cluster", ["real"], indirect=True)
def test_a_fenced_client_writes_nothing_and_another_does(cluster: Cluster, writers: list[Any], name: str) -> None:
    rbd = pytest.importorskip("rbd")
    first, second = writers
    second.write(b"second", 0)
    second.flush()
    first.write(b"first", 0)  # Takes the lock, which tells whose address is whose.
    first.flush()
    [theirs] = [one["owner"] for one in first.lock_get_owners()]
    assert theirs in cluster.info(name).watchers
    cluster.fence([theirs], DAY)

    def refused() -> bool:
        try:
            first.write(b"again", 0)
            first.flush()
        except rbd.ConnectionShutdown:
            return True
        finally:
            assert second.read(0, 5) == b"first"
        return False

    # Of fifty, one is told that it has flushed what librbd just threw away with the lock: that is lost, not written.
    wait(refused, timeout=10, what="librbd to hear of the fence")
    second.write(b"second again", 0)
    second.flush()
    assert second.read(0, 12) == b"second again"
