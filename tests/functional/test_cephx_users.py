# SPDX-License-Identifier: Apache-2.0
"""What somebody gets who has broken into a hypervisor and has the key that a guest's disk was opened with."""

from __future__ import annotations

import json

import pytest

from backends.service import Service
from contract.test_cluster_users import refused
from lab.ceph import Ceph
from lab.guest import Guest

pytestmark = pytest.mark.real


def fenced(ceph: Ceph) -> set[str]:
    return {line.split()[0] for line in ceph.command("osd", "blocklist", "ls").splitlines() if line}


def test_the_key_of_an_attachment(service: Service, ceph: Ceph, guests: tuple[Guest, Guest]) -> None:
    import rbd

    guest, before = guests[0], fenced(ceph)
    parent = service.create()
    service.rest(parent, "available")
    ceph.write(f"volume-{parent}", b"of-the-parent")
    mine = service.create(source_volid=parent)
    theirs = service.create(name="theirs")
    for volume in (mine, theirs):
        service.rest(volume, "available")
        assert service.attach(guest.uuid, volume).status == 200
    device = guest.wait_disk(mine)
    assert "of-the-parent" in guest.run(f"dd if={device} bs=13 count=1 2>/dev/null; echo")
    guest.write(device, "of-the-guest", 1)

    names = {ceph.opened_by(f"volume-{one}"): one for one in (mine, theirs)}
    assert sorted(names) == ceph.users()
    user, other_user = (next(name for name, volume in names.items() if volume == one) for one in (mine, theirs))
    key = ceph.command("auth", "print-key", user).strip()
    with ceph.connected(user.removeprefix("client."), key) as (client, ioctx):
        with rbd.Image(ioctx, f"volume-{mine}", read_only=True) as image:
            parent_id = image.parent_id()
        with rbd.Image(ioctx, image_id=parent_id, read_only=True) as image:
            assert image.read(0, 13) == b"of-the-parent"
        assert refused(lambda: ioctx.write(f"rbd_data.{parent_id}.{0:016x}", b"mine"))
        assert refused(lambda: rbd.Image(ioctx, image_id=parent_id))
        assert refused(lambda: rbd.Image(ioctx, f"volume-{theirs}", read_only=True))
        assert refused(lambda: rbd.RBD().list(ioctx))
        for entity in (other_user, f"client.{ceph.user}"):
            assert client.mon_command(json.dumps({"prefix": "auth get", "entity": entity}), b"")[0] == -13

    for volume in (mine, theirs):
        assert service.detach(guest.uuid, volume).status == 202
        service.rest(volume, "available")
        guest.wait_no_disk(volume)
    assert ceph.users() == []

    def connect() -> None:
        with ceph.connected(user.removeprefix("client."), key):
            pass

    assert refused(connect)
    assert fenced(ceph) <= before
    for volume in (mine, theirs, parent):
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_the_key_of_an_attachment_that_only_reads(service: Service, ceph: Ceph, guests: tuple[Guest, Guest]) -> None:
    import rbd

    guest, volume = guests[0], service.create()
    ceph.write(f"volume-{volume}", b"only-to-be-read")
    flag = {"os-update_readonly_flag": {"readonly": True}}
    assert service.call("POST", f"/v3/volumes/{volume}/action", flag).status == 202
    answer = service.attach(guest.uuid, volume)
    assert answer.status == 200, answer.text
    device = guest.wait_disk(volume)
    assert "only-to-be-read" in guest.run(f"dd if={device} bs=15 count=1 2>/dev/null; echo")
    assert guest.run(f"cat /sys/block/{device.removeprefix('/dev/')}/ro").strip() == "1"

    user = ceph.opened_by(f"volume-{volume}")
    key = ceph.command("auth", "print-key", user).strip()
    with ceph.connected(user.removeprefix("client."), key) as (_client, ioctx):
        with rbd.Image(ioctx, f"volume-{volume}", read_only=True) as image:
            image_id = image.id()
        assert refused(lambda: ioctx.write(f"rbd_data.{image_id}.{0:016x}", b"mine"))

    assert service.detach(guest.uuid, volume).status == 202
    service.rest(volume, "available")
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
