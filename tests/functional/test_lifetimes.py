# SPDX-License-Identifier: Apache-2.0
"""A clone that is made whole across a kill -9, and a deleted volume that comes back, on a real Ceph."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.process import wait

pytestmark = pytest.mark.real

MIB = 2**20


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, sockets: pathlib.Path) -> Iterator[Service]:
    """A service that is not started yet: clones of clones are too deep for it, and it keeps what is deleted."""
    options = {"DEFAULT": {"deleted_volume_retention": 3600}, "ceph": {"rbd_max_clone_depth": 1}}
    made = Service(tmp_path, ceph.conf, sockets, options)
    yield made
    made.stop()
    ceph.empty()


def parent(ceph: Ceph, volume: str) -> object:
    return json.loads(ceph.rbd("info", f"{ceph.pool}/volume-{volume}", "--format", "json")).get("parent")


def test_a_clone_of_a_clone_outlives_them_and_comes_back(service: Service, ceph: Ceph) -> None:
    once = service.directory / "once"
    once.touch()
    service.start("backends.dying_api", DIE_AT="flattens.flatten:stepped", DIE_ONCE=str(once))
    first = service.create()
    ceph.write(f"volume-{first}", b"kept" * MIB, 8 * MIB)
    second = service.create(source_volid=first)
    third = service.create(source_volid=second)
    wait(lambda: not once.exists(), timeout=30, what="the service to die when the image is whole")
    assert parent(ceph, third) is None
    service.kill()
    service.start()
    assert service.volume(third)["status"] == "available"
    snapshot = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": third}}).body["snapshot"]["id"]
    for gone in (first, second):
        assert service.call("DELETE", f"/v3/volumes/{gone}").status == 202
    assert service.call("DELETE", f"/v3/volumes/{third}?cascade=true").status == 202
    assert service.volume(third)["status"] == "gone"

    assert third in service.manage("volume", "deleted")
    assert service.manage("volume", "undelete", third) == f"{third}: available\n"
    assert third not in service.manage("volume", "deleted")
    assert ceph.read(f"volume-{third}", 4 * MIB, 8 * MIB) == b"kept" * MIB
    clone = service.create(snapshot_id=snapshot)
    assert ceph.read(f"volume-{clone}", 4 * MIB, 8 * MIB) == b"kept" * MIB
