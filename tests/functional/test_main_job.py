# SPDX-License-Identifier: Apache-2.0
"""The main job on a real Ceph and real guests: a volume becomes a disk, is written, moves, and is read."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real


def test_a_volume_moves_between_guests_with_its_bytes(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    one, two = guests
    before = one.holdings()
    volume = service.create(name="data")
    assert service.volume(volume)["status"] == "available"
    assert f"volume-{volume}" in ceph.images()

    attached = service.attach(one.uuid, volume)
    assert attached.status == 200, attached.text
    assert attached.body["volumeAttachment"]["device"].startswith("/dev/vd")
    shown = service.volume(volume)
    assert shown["status"] == "in-use"
    [seen] = shown["attachments"]
    assert (seen["server_id"], seen["id"]) == (one.uuid, volume)
    attachments = service.call("GET", "/v3/attachments", version="3.27").body["attachments"]
    assert [entry["id"] for entry in attachments] == [seen["attachment_id"]]
    server = service.call("GET", f"/v2.1/servers/{one.uuid}").body["server"]
    assert server["os-extended-volumes:volumes_attached"] == [{"id": volume}]

    device = one.wait_disk(volume)
    assert one.disks()[f"virtio-{volume[:20]}"] == device
    written = one.write(device, volume)
    one.run(f"[ $(cat /sys/block/{device.removeprefix('/dev/')}/size) = 2097152 ]")

    assert service.attach(one.uuid, volume).status == 400
    assert service.attach(two.uuid, volume).status == 400
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 400

    assert service.detach(one.uuid, volume).status == 202
    assert service.volume(volume)["status"] == "available"
    assert service.volume(volume)["attachments"] == []
    one.wait_no_disk(volume)
    assert one.holdings() == before
    assert ceph.watchers(f"volume-{volume}") == []

    assert service.attach(two.uuid, volume).status == 200
    assert two.sha256(two.wait_disk(volume)) == written
    assert service.detach(two.uuid, volume).status == 202
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
    assert service.volume(volume)["status"] == "gone"
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=20, what="the pool to be empty")


def test_the_key_is_nowhere_to_be_seen(service: Service, ceph: Ceph, guests: tuple[Guest, Guest]) -> None:
    one, _ = guests
    volume = service.create()
    assert service.attach(one.uuid, volume).status == 200
    key = ceph.command("auth", "print-key", f"client.{ceph.user}").strip()
    assert len(key) == 40
    assert one.pid is not None
    for path in ("cmdline", "environ"):
        assert key.encode() not in pathlib.Path(f"/proc/{one.pid}/{path}").read_bytes()
        assert key.encode() not in pathlib.Path(f"/proc/{service.pid}/{path}").read_bytes()
    assert not any(name.startswith("s") and len(name) == 27 for name in one.holdings()["objects"])
    assert key not in service.log.read_text(encoding="utf-8")
    for path in ("/v3/attachments/detail", f"/v3/volumes/{volume}", f"/v2.1/servers/{one.uuid}", "/metrics"):
        assert key not in service.call("GET", path, user="root", version="3.71" if "v3" in path else "").text
    service.detach(one.uuid, volume)
    service.call("DELETE", f"/v3/volumes/{volume}")


def test_several_volumes_have_several_names(service: Service, guests: tuple[Guest, Guest]) -> None:
    _, two = guests
    volumes = [service.create() for _ in range(3)]
    devices = []
    for volume in volumes:
        devices.append(service.attach(two.uuid, volume).body["volumeAttachment"]["device"])
        two.wait_disk(volume)  # A guest that is told of several at a time names them in the order of its slots.
    assert len(set(devices)) == 3
    assert [two.find(volume) for volume in volumes] == devices
    service.detach(two.uuid, volumes[1])
    two.wait_no_disk(volumes[1])
    again = service.attach(two.uuid, volumes[1]).body["volumeAttachment"]["device"]
    assert again == devices[1] == two.wait_disk(volumes[1])
    for volume in volumes:
        assert service.detach(two.uuid, volume).status == 202
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_a_server_without_room_says_what_to_do(service: Service, guest_of: Callable[..., Guest]) -> None:
    full = guest_of(ports=1)
    before = full.holdings()
    first, second = service.create(), service.create()
    assert service.attach(full.uuid, first).status == 200
    held = full.holdings()
    answer = service.attach(full.uuid, second)
    assert answer.status == 409
    assert "pcie-root-port" in answer.body["conflictingRequest"]["message"]
    assert service.volume(second)["status"] == "available"
    assert full.holdings() == held
    service.detach(full.uuid, first)
    assert full.holdings() == before
    for volume in (first, second):
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


@pytest.mark.parametrize("options", [{"ports": 0, "scsi": True}, {"machine": "pc"}], ids=["scsi", "pc"])
def test_other_machines(service: Service, guest_of: Callable[..., Guest], options: dict[str, object]) -> None:
    guest = guest_of(**options)
    volume = service.create()
    answer = service.attach(guest.uuid, volume)
    assert answer.status == 200, answer.text
    device = guest.wait_disk(volume)
    assert answer.body["volumeAttachment"]["device"] == device
    assert guest.write(device, "x", 1)
    assert service.detach(guest.uuid, volume).status == 202
    service.rest(volume, "available", 20)
    guest.wait_no_disk(volume)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
