# SPDX-License-Identifier: Apache-2.0
"""What the contract is tried on: fakes, a real cluster that nobody disturbs, and QEMU with that cluster behind it."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import pytest

from cinderlite.ceph.cluster import Cluster
from contract.stages import FakeStage, LibvirtStage, RealStage, Stage
from fakes_cluster import FakeCluster
from lab.ceph import Ceph
from lab.libvirt import Domain, Libvirt


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
        namespaces=True,
    )
    yield made
    made.close()
    ceph.empty()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Each of the two."""
    if request.param == "fake":
        return FakeCluster()
    found: Cluster = request.getfixturevalue("real_cluster")
    return found


@pytest.fixture(scope="session")
def _real_stage(request: pytest.FixtureRequest) -> Iterator[RealStage]:
    """The session's QEMU guests."""
    for program in ("ceph-mon", "qemu-system-x86_64"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    stage = RealStage(request.getfixturevalue("lab_directory"), request.getfixturevalue("ceph"))
    yield stage
    stage.end()


@pytest.fixture
def real_stage(_real_stage: RealStage) -> Iterator[RealStage]:
    """The same, tidied after each test."""
    yield _real_stage
    _real_stage.tidy()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Each of the two hypervisors."""
    if request.param == "fake":
        return FakeStage()
    found: RealStage = request.getfixturevalue("real_stage")
    return found


@pytest.fixture(scope="session")
def _libvirt_stage(lab_directory: pathlib.Path, ceph: Ceph, libvirt: Libvirt, domain: Domain) -> Iterator[LibvirtStage]:
    """The session's libvirt."""
    stage = LibvirtStage(lab_directory, ceph, libvirt, domain)
    yield stage
    stage.end()


@pytest.fixture
def libvirt_stage(_libvirt_stage: LibvirtStage) -> Iterator[LibvirtStage]:
    """The same, tidied after each test."""
    yield _libvirt_stage
    _libvirt_stage.tidy()
