# SPDX-License-Identifier: Apache-2.0
"""Volumes that leave servers which cannot be asked: a QEMU that is stopped as on a host that hangs, and goes on later."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from backends.service import HASTY, Answer, Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import LabError, wait

pytestmark = pytest.mark.real


@pytest.fixture
def service_options() -> Mapping[str, Mapping[str, object]]:
    return HASTY


def force_detach(service: Service, volume: str, **more: Any) -> Answer:
    return service.call("POST", f"/v3/volumes/{volume}/action", {"os-force_detach": more}, user="root")


@pytest.mark.timeout(90)
def test_a_host_that_hung_cannot_write_when_it_goes_on(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    first, second = guests
    lost, kept = service.create(), service.create()
    for volume in (lost, kept):
        assert service.attach(first.uuid, volume).status == 200
    device, beside = first.wait_disk(lost), first.wait_disk(kept)
    first.write(device, "the first's", 1)
    before = set(ceph.watchers(f"volume-{lost}"))
    # It writes on and on, so that it is stopped in the middle.
    first.run(
        f"touch /on; (while [ -e /on ]; do echo late | dd of={device} conv=sync,fsync bs=4096; done) >/dev/null 2>&1 &"
    )
    first.freeze()
    try:
        assert force_detach(service, lost).status == 202
        assert service.volume(lost)["status"] == "available"
        assert before <= set(json.loads(ceph.command("osd", "dump", "-f", "json"))["blocklist"])
        assert service.attach(second.uuid, lost).status == 200
        theirs = second.wait_disk(lost)
        written = second.write(theirs, "the second's", 1)
    finally:
        first.unfreeze()
    first.run("rm /on")
    with pytest.raises(LabError):
        first.run(f"echo late | dd of={device} conv=sync,fsync bs=4096")
    time.sleep(1)  # What the first may still have had in hand is refused by now.
    assert second.sha256(theirs, 1) == written
    # Each disk is a client of its own: the other one goes on.
    first.write(beside, "still the first's", 1)
    assert ceph.watchers(f"volume-{kept}")
    # The dead disk leaves the guest that came back.
    first.wait_no_disk(lost, 30)
    assert {one["server_id"] for one in service.volume(lost)["attachments"]} == {second.uuid}
    assert service.detach(second.uuid, lost).status == 202
    service.rest(lost, "available", 20)
    # And the server that lost the volume can have it anew.
    assert service.attach(first.uuid, lost).status == 200
    assert first.sha256(first.wait_disk(lost), 1) == written
    for volume in (lost, kept):
        assert service.detach(first.uuid, volume).status == 202
        service.rest(volume, "available", 20)
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


@pytest.mark.timeout(60)
def test_no_vm_waits_for_a_ceph_that_is_down(service: Service, ceph: Ceph, guests: tuple[Guest, Guest]) -> None:
    volume = service.create()
    guest = guests[0]
    for pause, resume in ((ceph.pause_mon, ceph.resume_mon), (ceph.pause_osd, ceph.resume_osd)):
        pause()
        try:
            assert service.attach(guest.uuid, volume).status == 503
            assert guest.qmp("query-block", timeout=2) is not None  # It needs the main loop.
        finally:
            resume()
        wait(lambda: service.call("GET", "/healthcheck", user=None).status == 200, timeout=30, what="Ceph to answer")
        service.rest(volume, "available", 20)
    # What librbd was asked meanwhile may still be under way, and holds the image.
    wait(
        lambda: service.call("DELETE", f"/v3/volumes/{volume}").status in (202, 404),
        timeout=30,
        what="the volume to go",
    )
