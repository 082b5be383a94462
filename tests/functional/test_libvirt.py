# SPDX-License-Identifier: Apache-2.0
"""A libvirt host through the API: its servers running, off, paused; and its libvirt dead, hung, or never there."""

from __future__ import annotations

import pathlib
import re
import uuid
from collections.abc import Callable, Iterator

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.libvirt import Domain, Libvirt
from lab.process import LabError, wait

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, ceph: Ceph, sockets: pathlib.Path, libvirt: Libvirt
) -> Iterator[Service]:
    """The service, over a QMP directory, a libvirt, and one that is not there; a test leaves no volume behind."""
    tmp_path = tmp_path_factory.mktemp("libvirt")
    away = f"qemu:///session?socket={tmp_path}/nobody-listens"
    guests = {"libvirt_uris": f"{libvirt.uri}, {away}", "libvirt_connect_timeout": 1, "libvirt_call_timeout": 5}
    running = Service(tmp_path, ceph.conf, sockets, {"guests": guests})
    running.start()
    yield running
    running.stop()
    ceph.empty()


def statuses(service: Service) -> dict[str, str]:
    shown = service.call("GET", "/v2.1/servers/detail").body["servers"]
    return {one["id"]: one["status"] for one in shown}


def gone(service: Service, volume: str) -> None:
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_a_volume_follows_a_server_through_its_life(service: Service, domain: Domain, ceph: Ceph) -> None:
    first, second = service.create(), service.create()
    assert service.attach(domain.uuid, first).status == 200
    written = domain.write(domain.wait_disk(first), "while it ran", 1)
    domain.stop()
    assert statuses(service)[domain.uuid] == "SHUTOFF"
    # Off, it takes another one, and keeps the first: nobody else gets that.
    attached = service.attach(domain.uuid, second)
    assert (attached.status, attached.body["volumeAttachment"]["device"]) == (200, "/dev/vdb")
    wait(lambda: ceph.watchers(f"volume-{first}") == [], timeout=30, what="Ceph to see that nobody has it open")
    assert [service.volume(one)["status"] for one in (first, second)] == ["in-use", "in-use"]
    domain.start()
    assert domain.sha256(domain.wait_disk(first), 1) == written
    domain.wait_disk(second)
    grow = {"os-extend": {"new_size": 2}}
    assert service.call("POST", f"/v3/volumes/{second}/action", grow, version="3.42").status == 202
    device = domain.wait_disk(second)
    wait(
        lambda: int(domain.run(f"cat /sys/block/{device.removeprefix('/dev/')}/size")) == 2**22,
        timeout=10,
        what="the guest to see the new size",
    )
    assert service.detach(domain.uuid, first).status == 202
    service.rest(first, "available", 10)
    domain.wait_no_disk(first)
    domain.stop()
    assert service.detach(domain.uuid, second).status == 202
    assert service.volume(second)["status"] == "available"
    domain.start()
    gone(service, first)
    gone(service, second)


def test_a_paused_server_lets_go_when_it_runs_again(service: Service, domain: Domain) -> None:
    volume = service.create()
    domain.pause()
    assert service.attach(domain.uuid, volume).status == 200
    assert statuses(service)[domain.uuid] == "PAUSED"
    assert service.detach(domain.uuid, volume).status == 202
    assert service.volume(volume)["status"] == "detaching"
    assert "has not released the disk" in service.messages(volume)[0]
    domain.resume()
    service.rest(volume, "available", 30)
    gone(service, volume)


def test_a_libvirt_that_dies_takes_nothing_with_it(
    service: Service, domain: Domain, libvirt: Libvirt, guest_of: Callable[..., Guest]
) -> None:
    other = guest_of(guest_os=False, ports=0, scsi=True)
    volume, spare = service.create(), service.create()
    assert service.attach(domain.uuid, volume).status == 200
    domain.wait_disk(volume)
    libvirt.kill()
    try:
        wait(lambda: statuses(service)[domain.uuid] == "ERROR", timeout=10, what="the server to show it")
        assert statuses(service)[other.uuid] == "ACTIVE"
        assert service.attach(domain.uuid, spare).status in (409, 503)
        assert service.attach(other.uuid, spare).status == 200
        # A service that starts now knows nothing of the server, and concludes nothing.
        service.stop()
        service.start()
        assert domain.uuid not in statuses(service)
        assert f"{libvirt.uri} cannot be reached" in service.tail()
        with pytest.raises(LabError, match=f"Guests: Warning: .*{re.escape(libvirt.uri)} cannot be reached"):
            service.status("upgrade", "check")
        assert service.call("GET", f"/v2.1/servers/{domain.uuid}").status == 503
        assert service.call("GET", f"/v2.1/servers/{uuid.uuid4()}").status == 503
        assert service.call("GET", "/v2.1/servers/linux").status == 404
        assert service.detach(domain.uuid, volume).status == 503
        assert service.volume(volume)["status"] == "in-use"
        domain.sha256(domain.wait_disk(volume), 1)
    finally:
        libvirt.start()
    wait(lambda: statuses(service).get(domain.uuid) == "ACTIVE", timeout=20, what="the server to be back")
    assert service.detach(domain.uuid, volume).status == 202
    service.rest(volume, "available", 20)
    assert service.detach(other.uuid, spare).status == 202
    service.rest(spare, "available", 60)
    gone(service, volume)
    gone(service, spare)


def test_a_libvirt_that_hangs_holds_nobody_up(service: Service, domain: Domain, libvirt: Libvirt) -> None:
    volume = service.create()
    assert statuses(service)[domain.uuid] == "ACTIVE"
    libvirt.freeze()
    try:
        wait(lambda: statuses(service)[domain.uuid] == "ERROR", timeout=20, what="the server to show it")
        assert service.attach(domain.uuid, volume).status in (409, 503)
        wait(lambda: service.volume(volume)["status"] in ("available", "attaching"), timeout=10, what="an end")
    finally:
        libvirt.unfreeze()
    service.rest(volume, "available", 40)
    wait(lambda: statuses(service)[domain.uuid] == "ACTIVE", timeout=20, what="the server to be back")
    assert service.attach(domain.uuid, volume).status == 200
    assert service.detach(domain.uuid, volume).status == 202
    service.rest(volume, "available", 20)
    gone(service, volume)
