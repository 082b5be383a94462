# SPDX-License-Identifier: Apache-2.0
"""Guests and clusters that misbehave: each ends in a true state, with words that somebody can act on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import pytest

from backends.service import HASTY, Answer, Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real


@pytest.fixture
def service_options() -> Mapping[str, Mapping[str, object]]:
    return HASTY


def test_a_paused_guest_lets_go_when_it_runs_again(service: Service, guest_of: Callable[..., Guest]) -> None:
    guest = guest_of()
    volume = service.create()
    assert service.attach(guest.uuid, volume).status == 200
    guest.wait_disk(volume)
    guest.pause()
    assert service.detach(guest.uuid, volume).status == 202
    assert service.volume(volume)["status"] == "detaching"
    assert "has not released the disk" in service.messages(volume)[0]
    assert service.detach(guest.uuid, volume).status == 400
    assert service.call("GET", f"/v2.1/servers/{guest.uuid}").body["server"]["status"] == "PAUSED"
    guest.resume()
    service.rest(volume, "available", 30)
    guest.wait_no_disk(volume)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_a_guest_without_an_operating_system_lets_go_at_its_reset(
    service: Service, guest_of: Callable[..., Guest]
) -> None:
    guest = guest_of(guest_os=False)
    volume = service.create()
    assert service.attach(guest.uuid, volume).status == 200
    assert service.volume(volume)["status"] == "in-use"
    assert service.detach(guest.uuid, volume).status == 202
    assert service.volume(volume)["status"] == "detaching"
    assert "reboot the guest" in service.messages(volume)[0]
    guest.qmp("system_reset")
    service.rest(volume, "available", 60)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_the_volumes_of_a_killed_vm_come_back(
    service: Service, ceph: Ceph, guest_of: Callable[..., Guest], guests: tuple[Guest, Guest]
) -> None:
    guest = guest_of()
    volume = service.create()
    assert service.attach(guest.uuid, volume).status == 200
    written = guest.write(guest.wait_disk(volume), "before the end", 1)
    guest.kill()
    assert service.volume(volume)["status"] in ("in-use", "detaching")
    wait(lambda: statuses(service).get(guest.uuid) == "SHUTOFF", timeout=10, what="the dead VM to show")
    # The dead client's watch lapses by and by; before that Ceph cannot know that it will not write any more.
    service.rest(volume, "available", 60)
    assert "is no more" in " ".join(service.messages(volume))
    assert ceph.watchers(f"volume-{volume}") == []
    other = guests[0]
    assert service.attach(other.uuid, volume).status == 200
    assert other.sha256(other.wait_disk(volume), 1) == written
    assert service.detach(other.uuid, volume).status == 202
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_a_vm_killed_while_it_detaches(service: Service, guest_of: Callable[..., Guest]) -> None:
    guest = guest_of()
    volume = service.create()
    assert service.attach(guest.uuid, volume).status == 200
    guest.wait_disk(volume)
    guest.pause()
    assert service.detach(guest.uuid, volume).status == 202
    assert service.volume(volume)["status"] == "detaching"
    guest.kill()
    service.rest(volume, "available", 60)
    assert service.messages(volume)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_a_restarted_vm_gets_its_volume_again(service: Service, guest_of: Callable[..., Guest]) -> None:
    service.stop()
    service.configure({"guests": {"guest_gone_after": 60}})  # However long it takes to start.
    service.start()
    guest = guest_of()
    volume = service.create()
    assert service.attach(guest.uuid, volume).status == 200
    written = guest.write(guest.wait_disk(volume), "before the restart", 1)
    guest.stop()
    guest.start()
    assert guest.sha256(guest.wait_disk(volume, 60), 1) == written
    service.rest(volume, "in-use", 20)
    assert service.detach(guest.uuid, volume).status == 202
    service.rest(volume, "available", 20)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


_WATCHES = """
import sys
import rados
conf, user, pool, header = sys.argv[1:]
handle = rados.Rados(conffile=conf, name=f"client.{user}")
handle.connect()
ioctx = handle.open_ioctx(pool)
print("now", flush=True)
while True:
    ioctx.watch(header, lambda *said: None).close()
"""


def watch_for_ever(ceph: Ceph, image: str) -> None:
    """Leave a watch on an image that Ceph does not end: its client dies before the OSD has carried it out."""
    header = f"rbd_header.{json.loads(ceph.rbd('info', f'{ceph.pool}/{image}', '--format', 'json'))['id']}"
    arguments = [sys.executable, "-c", _WATCHES, str(ceph.conf), ceph.user, ceph.pool, header]

    def is_left() -> bool:
        dying = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(4)]
        for one in dying:
            assert one.stdout is not None
            one.stdout.readline()
        for one in dying:
            one.kill()
            one.communicate()
        # Of whom the OSD knows that they may be gone.
        missed = set(re.findall(r'"nonce": (\d+)', ceph.command("tell", "osd.0", "dump_watchers")))
        return not missed.issuperset(address.partition("/")[2] for address in ceph.watchers(image))

    wait(is_left, timeout=30, what="a watch of the dead")


def test_a_watch_that_ceph_would_not_end_ends(service: Service, ceph: Ceph, guests: tuple[Guest, Guest]) -> None:
    attached, deleted = service.create(), service.create()
    for volume in (attached, deleted):
        watch_for_ever(ceph, f"volume-{volume}")

    def attach() -> Answer:
        return service.attach(guests[0].uuid, attached)

    def delete() -> Answer:
        return service.call("DELETE", f"/v3/volumes/{deleted}")

    for ask, volume in ((attach, attached), (delete, deleted)):
        said = ask().text
        assert any(one in said for one in ceph.watchers(f"volume-{volume}")), said
    refused = {attach: 200, delete: 202}

    def free() -> bool:
        for again, status in list(refused.items()):
            if again().status == status:
                del refused[again]
        return not refused

    wait(free, timeout=60, what="the volumes to be free")  # Those that Ceph does end hold up the other ones.
    assert service.detach(guests[0].uuid, attached).status == 202
    assert service.call("DELETE", f"/v3/volumes/{attached}").status == 202


def statuses(service: Service) -> dict[str, str]:
    shown = service.call("GET", "/v2.1/servers/detail", timeout=20).body["servers"]
    return {one["id"]: one["status"] for one in shown}


def test_a_hung_vm_holds_up_nobody_else(
    service: Service, guest_of: Callable[..., Guest], guests: tuple[Guest, Guest]
) -> None:
    hung = guest_of()
    volume = service.create()
    service.call("GET", "/v2.1/servers/detail")
    hung.freeze()
    try:
        wait(lambda: statuses(service).get(hung.uuid) == "ERROR", timeout=20, what="the hung VM to show")
        assert statuses(service)[guests[0].uuid] == "ACTIVE"
        refused = service.attach(hung.uuid, volume)
        assert refused.status in (409, 503)
        assert service.attach(guests[0].uuid, volume).status == 200
    finally:
        hung.unfreeze()
    service.detach(guests[0].uuid, volume)
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


@pytest.mark.timeout(120)
def test_a_frozen_ceph_is_503_in_time_and_recovers(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    ceph.pause_osd()
    try:
        time.sleep(1.1)  # Until the last good probe does not count any more.
        refused = service.call("POST", "/v3/volumes", {"volume": {"size": 1}})
        assert refused.status == 503
        assert "serviceUnavailable" in refused.body
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 503
        assert service.call("GET", "/healthcheck", user=None).status == 503
        assert [one["status"] for one in service.call("GET", "/v3/volumes/detail").body["volumes"]] == ["available"]
        assert service.call("PUT", f"/v3/volumes/{volume}", {"volume": {"name": "still here"}}).status == 200
        assert service.call("GET", "/v2.1/servers").status == 200
    finally:
        ceph.resume_osd()
    wait(lambda: service.call("GET", "/healthcheck", user=None).status == 200, timeout=30, what="Ceph to answer again")
    wait(
        lambda: service.call("DELETE", f"/v3/volumes/{volume}").status in (202, 404),
        timeout=30,
        what="the volume to go",
    )
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=30, what="the pool to be empty")


def test_ceph_freezes_in_the_middle_of_creating(service: Service, ceph: Ceph) -> None:
    service.create()
    ceph.pause_osd()  # The last good probe still counts: the create begins.
    try:
        made = service.call("POST", "/v3/volumes", {"volume": {"size": 1}})
        assert made.status in (202, 503), made.text
    finally:
        ceph.resume_osd()

    def settled() -> bool:
        found = service.call("GET", "/v3/volumes/detail").body["volumes"]
        return all(one["status"] == "available" for one in found) and len(found) == len(ceph.images())

    wait(settled, timeout=60, what="every volume to be available")
    for one in service.call("GET", "/v3/volumes").body["volumes"]:
        assert service.call("DELETE", f"/v3/volumes/{one['id']}").status == 202
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=30, what="the pool to be empty")


def test_starting_with_ceph_down_and_recovering(service: Service, ceph: Ceph) -> None:
    service.stop()
    ceph.pause_mon()
    try:
        service.start()
        assert service.call("GET", "/v3/volumes").status == 200
        assert service.call("POST", "/v3/volumes", {"volume": {"size": 1}}).status == 503
    finally:
        ceph.resume_mon()
    wait(lambda: service.call("GET", "/healthcheck", user=None).status == 200, timeout=30, what="Ceph to answer again")
    wait(
        lambda: service.call("POST", "/v3/volumes", {"volume": {"size": 1}}).status == 202, timeout=20, what="a create"
    )
    [volume] = service.call("GET", "/v3/volumes").body["volumes"]
    assert service.call("DELETE", f"/v3/volumes/{volume['id']}").status == 202
