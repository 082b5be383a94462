# SPDX-License-Identifier: Apache-2.0
"""Snapshots, clones, growing and going back on a real Ceph, with what a real guest reads."""

from __future__ import annotations

from typing import Any

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real


def snapshot(service: Service, volume: str) -> str:
    """Take a snapshot, of a volume in use too; it is there when the answer comes."""
    answer = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
    assert answer.status == 202, answer.text
    made: str = answer.body["snapshot"]["id"]
    assert service.call("GET", f"/v3/snapshots/{made}").body["snapshot"]["status"] == "available"
    return made


def act(service: Service, volume: str, version: str = "3.71", **action: Any) -> None:
    [(name, body)] = action.items()
    answer = service.call(
        "POST", f"/v3/volumes/{volume}/action", {name.replace("__", "-"): body}, version=version, user="root"
    )
    assert answer.status == 202, answer.text


def bytes_in(service: Service, guest: Guest, volume: str) -> str:
    """What a guest reads from a volume."""
    assert service.attach(guest.uuid, volume).status == 200
    digest = guest.sha256(guest.wait_disk(volume))
    assert service.detach(guest.uuid, volume).status == 202
    return digest


def test_what_was_written_lives_on_in_snapshots_and_clones(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    one, two = guests
    volume = service.create()
    service.attach(one.uuid, volume)
    device = one.wait_disk(volume)
    first = one.write(device, "first")
    snap = snapshot(service, volume)
    second = one.write(device, "second")
    assert first != second
    copied = service.create(source_volid=volume)
    third = one.write(device, "third")
    service.detach(one.uuid, volume)

    cloned = service.create(snapshot_id=snap, size=2)
    assert bytes_in(service, two, cloned) == first
    assert bytes_in(service, two, copied) == second
    assert bytes_in(service, two, volume) == third

    assert service.call("DELETE", f"/v3/snapshots/{snap}").status == 202
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
    assert bytes_in(service, one, cloned) == first
    assert bytes_in(service, one, copied) == second
    for left in (cloned, copied):
        assert service.call("DELETE", f"/v3/volumes/{left}").status == 202
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=60, what="the pool to be empty")


def test_a_volume_goes_back(service: Service, guests: tuple[Guest, Guest]) -> None:
    one, _ = guests
    volume = service.create()
    service.attach(one.uuid, volume)
    good = one.write(one.wait_disk(volume), "good")
    snap = snapshot(service, volume)
    one.write(one.wait_disk(volume), "bad")
    service.detach(one.uuid, volume)
    act(service, volume, revert={"snapshot_id": snap})
    wait(lambda: service.volume(volume)["status"] == "available", timeout=20, what="the volume to be back")
    assert bytes_in(service, one, volume) == good
    assert service.call("DELETE", f"/v3/volumes/{volume}?cascade=true").status == 202


def test_a_guest_sees_its_disk_grow(service: Service, guests: tuple[Guest, Guest]) -> None:
    one, _ = guests
    volume = service.create()
    service.attach(one.uuid, volume)
    device = one.wait_disk(volume).removeprefix("/dev/")
    written = one.write(f"/dev/{device}", "kept")
    act(service, volume, os__extend={"new_size": 2})
    found = service.volume(volume)
    assert (found["size"], found["status"]) == (2, "in-use")
    sectors = str(2 * 2**30 // 512)
    wait(lambda: one.run(f"cat /sys/block/{device}/size").strip() == sectors, timeout=10, what="the guest to see it")
    assert one.sha256(f"/dev/{device}") == written
    service.detach(one.uuid, volume)
    service.call("DELETE", f"/v3/volumes/{volume}")


def test_a_frozen_guest_keeps_its_disk_when_a_snapshot_is_asked(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    """librbd would blocklist a client that does not answer: its disk would be dead when it goes on."""
    one, _ = guests
    volume = service.create()
    service.attach(one.uuid, volume)
    one.write(one.wait_disk(volume), "before")
    one.freeze()
    try:
        answer = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
        assert answer.status == 202
        snap = answer.body["snapshot"]["id"]
        assert service.call("GET", f"/v3/snapshots/{snap}").body["snapshot"]["status"] == "creating"
        assert "snapshot-" not in ceph.rbd("snap", "ls", f"{ceph.pool}/volume-{volume}")
    finally:
        one.unfreeze()
    wait(
        lambda: service.call("GET", f"/v3/snapshots/{snap}").body["snapshot"]["status"] == "available",
        timeout=30,
        what="the snapshot",
    )
    written = one.write(one.wait_disk(volume), "after")
    assert one.sha256(one.wait_disk(volume)) == written
    service.detach(one.uuid, volume)
    assert service.call("DELETE", f"/v3/volumes/{volume}?cascade=true").status == 202
