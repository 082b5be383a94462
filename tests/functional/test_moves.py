# SPDX-License-Identifier: Apache-2.0
"""Volumes between two pools of a real Ceph: their bytes and snapshots go along, whoever dies half-way."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.process import wait

pytestmark = pytest.mark.real

MIB = 2**20
FAST = "second"


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, guests: Any, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service with a back end for each of two pools, and a type for the second."""
    ceph.add_pool(FAST)
    ceph.empty()
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"enabled_backends": "ceph,fast"},
        "fast": {"rbd_pool": FAST, "rbd_ceph_conf": ceph.conf},
    }
    running = Service(tmp_path, ceph.conf, sockets, options)
    running.start()
    kind = {"volume_type": {"name": "quick", "extra_specs": {"volume_backend_name": "fast"}}}
    assert running.call("POST", "/v3/types", kind, user="root").status == 200
    yield running
    running.stop()
    ceph.empty()


def digest(ceph: Ceph, image: str) -> str:
    """Of the first 256 MiB of an image or a snapshot, wherever it is, read by the rbd command."""
    exported = ceph.directory / "exported"
    ceph.rbd("export", "--no-progress", image, str(exported))
    try:
        with exported.open("rb") as file:
            return hashlib.sha256(file.read(256 * MIB)).hexdigest()
    finally:
        exported.unlink()


def retype(service: Service, volume: str) -> None:
    body = {"os-retype": {"new_type": "quick", "migration_policy": "on-demand"}}
    answer = service.call("POST", f"/v3/volumes/{volume}/action", body)
    assert answer.status == 202, answer.text


def test_a_volume_goes_to_the_pool_of_its_new_type_with_its_snapshots(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    image = f"volume-{volume}"
    ceph.write(image, b"then" * MIB, 3 * MIB)
    snap = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}}).body["snapshot"]["id"]
    ceph.write(image, b"now!" * MIB, 100 * MIB)
    before = [digest(ceph, f"volumes/{image}"), digest(ceph, f"volumes/{image}@snapshot-{snap}")]
    assert before[0] != before[1]
    retype(service, volume)
    service.rest(volume, "available")
    assert service.volume(volume)["volume_type"] == "quick"
    assert image not in ceph.images()
    assert [digest(ceph, f"{FAST}/{image}"), digest(ceph, f"{FAST}/{image}@snapshot-{snap}")] == before
    copy = service.create(snapshot_id=snap)
    assert digest(ceph, f"{FAST}/volume-{copy}") == before[1]
    assert service.call("DELETE", f"/v3/snapshots/{snap}").status == 202
    for left in (copy, volume):
        assert service.call("DELETE", f"/v3/volumes/{left}").status == 202
    wait(lambda: not ceph.images(FAST) and not ceph.trash(), timeout=60, what="both pools to be empty")


def test_a_move_that_was_broken_off_is_finished(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    image = f"volume-{volume}"
    ceph.write(image, bytes(range(256)) * (MIB // 256) * 200)
    before = digest(ceph, f"volumes/{image}")
    retype(service, volume)
    wait(lambda: image in ceph.images(FAST), timeout=30, what="the move to be begun")
    service.kill()
    service.start()
    service.rest(volume, "available", timeout=120)
    assert service.volume(volume)["volume_type"] == "quick"
    assert digest(ceph, f"{FAST}/{image}") == before
