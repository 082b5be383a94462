# SPDX-License-Identifier: Apache-2.0
"""Volumes between two pools of a real Ceph: their bytes and snapshots go along, whoever dies half-way."""

from __future__ import annotations

import hashlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
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
    kept, dropped = [
        service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}}).body["snapshot"]["id"]
        for _ in range(2)
    ]
    retype(service, volume)
    wait(lambda: image in ceph.images(FAST), timeout=30, what="the move to be begun")
    service.kill()
    service.start()
    # What belongs to it waits until the image is somewhere again.
    assert service.call("DELETE", f"/v3/snapshots/{dropped}").status == 202
    service.rest(volume, "available", timeout=120)
    gone = f"/v3/snapshots/{dropped}"
    wait(lambda: service.call("GET", gone).status == 404, timeout=60, what="the snapshot to be gone")
    assert service.volume(volume)["volume_type"] == "quick"
    assert digest(ceph, f"{FAST}/{image}") == before
    there = json.loads(ceph.rbd("snap", "ls", "--format", "json", f"{FAST}/{image}"))
    assert [one["name"] for one in there] == [f"snapshot-{kept}"]
    assert digest(ceph, f"{FAST}/volume-{service.create(snapshot_id=kept)}") == before


def numbers(ceph: Ceph, image: str, count: int) -> list[int]:
    """The numbers that an image has in its pages, from the first on."""
    exported = ceph.directory / "exported"
    ceph.rbd("export", "--no-progress", image, str(exported))
    try:
        with exported.open("rb") as file:
            return [int(file.read(4096).rstrip(b"\0") or b"0") for _ in range(count)]
    finally:
        exported.unlink()


def test_a_volume_in_use_goes_over_while_its_server_writes_and_the_service_dies(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    """Between two commands to QEMU: the images are equal, the row says the other one, the server's writes wait."""
    guest = guests[0]
    service.stop()
    once = service.directory / "once"
    once.touch()
    service.start("backends.dying_api", DIE_AT="qmp.job-finalize", DIE_ONCE=str(once))
    volume = service.create()
    image = f"volume-{volume}"
    assert service.attach(guest.uuid, volume).status == 200
    device = guest.wait_disk(volume)
    page = "dd bs=4096 seek=$((n-1)) conv=sync,notrunc,fsync"
    loop = f"while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n | {page} of={device}; echo $n > /tmp/last; mv /tmp/last /tmp/stored; done"
    guest.run(f"rm -f /tmp/stop /tmp/stored; (n=0; {loop}; touch /tmp/stopped) > /dev/null 2>&1 &")
    retype(service, volume)
    wait(lambda: not once.exists(), timeout=30, what="the service to die")
    service.kill()
    before = guest.run("cat /tmp/stored")
    time.sleep(0.5)
    assert guest.run("cat /tmp/stored") == before
    service.start()
    service.rest(volume, "in-use")
    assert service.volume(volume)["volume_type"] == "quick"
    assert image not in ceph.images()
    assert image in ceph.images(FAST)
    wait(lambda: int(guest.run("cat /tmp/stored")) > int(before) + 5, timeout=20, what="the server to go on")
    guest.run("touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done; rm /tmp/stopped")
    count = int(guest.run("cat /tmp/stored"))
    assert numbers(ceph, f"{FAST}/{image}", count) == list(range(1, count + 1))
    assert service.detach(guest.uuid, volume).status == 202
    service.rest(volume, "available")
    guest.wait_no_disk(volume)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
    wait(lambda: not ceph.images(FAST) and not ceph.trash(), timeout=60, what="both pools to be empty")
