# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose volume was deleted, across a kill -9, on a real Ceph."""

from __future__ import annotations

import contextlib
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
    """A service that is not started yet, of which snapshots outlive volumes."""
    made = Service(tmp_path, ceph.conf, sockets, {"DEFAULT": {"snapshots_outlive_volumes": True}})
    yield made
    made.stop()
    ceph.empty()


def test_a_snapshot_outlives_its_volume(service: Service, ceph: Ceph) -> None:
    once = service.directory / "once"
    once.touch()
    service.start("backends.dying_api", DIE_AT="volumes.hollow:stepped", DIE_ONCE=str(once))
    volume = service.create()
    ceph.write(f"volume-{volume}", b"kept" * MIB, 8 * MIB)
    snapshot = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}}).body["snapshot"]["id"]
    ceph.write(f"volume-{volume}", b"lost" * MIB, 8 * MIB)
    with contextlib.suppress(OSError):  # It may die before it answers.
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
    wait(lambda: not once.exists(), timeout=30, what="the service to die when the volume's own data are gone")
    service.kill()
    service.start()
    assert service.volume(volume)["status"] == "gone"
    clone = service.create(snapshot_id=snapshot)
    assert ceph.read(f"volume-{clone}", 4 * MIB, 8 * MIB) == b"kept" * MIB
    assert "agree" in service.manage("audit")
    assert service.call("DELETE", f"/v3/volumes/{clone}").status == 202
    assert service.call("DELETE", f"/v3/snapshots/{snapshot}").status == 202
    assert service.volume(clone)["status"] == "gone"
    left = [("ls", ceph.pool), ("trash", "ls", ceph.pool)]
    wait(lambda: not "".join(ceph.rbd(*words) for words in left).strip(), timeout=60, what="the image to go")
