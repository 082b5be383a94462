# SPDX-License-Identifier: Apache-2.0
"""The clusters that the contract is tried on: the fake, and a real one that nobody disturbs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cinderlite.ceph.cluster import Cluster
from fakes_cluster import FakeCluster
from lab.ceph import Ceph


@pytest.fixture(scope="module")
def real_cluster(ceph: Ceph) -> Iterator[Cluster]:
    """The session's Ceph, with a second pool beside its own."""
    ceph.add_pool("second")  # Rights hold for connections that are made after they were given.
    made = Cluster(
        pool=ceph.pool,
        conffile=str(ceph.conf),
        user=ceph.user,
        connect_timeout=5,
        mon_timeout=5,
        osd_timeout=5,
        call_timeout=10.0,
        threads=4,
    )
    yield made
    made.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Each of the two."""
    if request.param == "fake":
        return FakeCluster()
    found: Cluster = request.getfixturevalue("real_cluster")
    return found
