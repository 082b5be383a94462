# SPDX-License-Identifier: Apache-2.0
"""kill -9 between any two steps: after a restart everything comes to rest, nothing is orphaned, nothing is stuck."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
from typing import Any

import pytest

from backends.service import HASTY, Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real

FINAL = ("available", "in-use", "error", "gone")


@pytest.fixture
def quiet(tmp_path: pathlib.Path, ceph: Ceph, guests: tuple[Guest, Guest], sockets: pathlib.Path) -> Any:
    """A service that is not started yet."""
    ceph.empty()
    made = Service(tmp_path, ceph.conf, sockets, HASTY)
    yield made
    made.kill()
    ceph.empty()


#: What changes something in a guest.
CHANGING = "qmp.object-add,qmp.object-del,qmp.blockdev-add,qmp.blockdev-del,qmp.device_add,qmp.device_del"


def die_at(service: Service, point: str, count: int = 1) -> None:
    """Start the service so that it will kill itself the n-th time that it passes one of some points."""
    once = service.directory / "once"
    once.touch()
    service.start("backends.dying_api", DIE_AT=point, DIE_COUNT=str(count), DIE_ONCE=str(once))


def at(verb: str, point: str) -> tuple[str, int]:
    """A point of that verb's, or that command that changes the guest."""
    return (CHANGING, int(point)) if point.isdecimal() else (f"attachments.{verb}:{point}", 1)


def broken(call: Any, *arguments: Any, **fields: Any) -> None:
    """A call whose service dies under it."""
    with contextlib.suppress(OSError, AssertionError, http.client.HTTPException, json.JSONDecodeError):
        call(*arguments, **fields)


def restart(service: Service) -> None:
    """Start the service again as it should be, after it has died."""
    wait(lambda: service._process is None or service._process.poll() is not None, timeout=20, what="the service to die")
    assert not (service.directory / "once").exists()
    service.kill()
    service.start()


def listed(service: Service) -> list[dict[str, Any]]:
    return list(service.call("GET", "/v3/volumes/detail", version="3.71").body["volumes"])


def at_rest(service: Service, ceph: Ceph, guest: Guest) -> bool:
    """Whether rows, images and devices agree and nothing is under way."""
    volumes = listed(service)
    images = {f"volume-{one['id']}" for one in volumes if one["status"] != "error"}
    inside = {name.removeprefix("volume-") for name in guest.holdings()["devices"] if name.startswith("volume-")}
    attached = {one["id"] for one in volumes if one["status"] == "in-use"}
    return (
        all(one["status"] in FINAL for one in volumes)
        and set(ceph.images()) == images
        and not ceph.trash()
        and inside == attached
        and len(ceph.users()) == len(attached)
        and all(bool(one["attachments"]) == (one["status"] == "in-use") for one in volumes)
    )


def tidy(service: Service, guest: Guest) -> None:
    for one in listed(service):
        for attachment in one["attachments"]:
            service.detach(attachment["server_id"], one["id"])
            service.rest(one["id"], "available")
        assert service.call("DELETE", f"/v3/volumes/{one['id']}").status == 202


def come_to_rest(service: Service, ceph: Ceph, guest: Guest) -> None:
    wait(lambda: at_rest(service, ceph, guest), timeout=60, what=f"everything to come to rest: {listed(service)}")


@pytest.mark.parametrize("point", ["begun", "stepped", "settled"])
def test_create(quiet: Service, ceph: Ceph, guests: tuple[Guest, Guest], point: str) -> None:
    die_at(quiet, f"volumes.create:{point}")
    broken(quiet.create, name="x")
    restart(quiet)
    come_to_rest(quiet, ceph, guests[0])
    [volume] = listed(quiet)
    assert volume["status"] == "available"
    tidy(quiet, guests[0])
    come_to_rest(quiet, ceph, guests[0])


@pytest.mark.parametrize("verb", ["delete", "purge"])
@pytest.mark.parametrize("point", ["begun", "stepped", "settled"])
def test_delete(quiet: Service, ceph: Ceph, guests: tuple[Guest, Guest], point: str, verb: str) -> None:
    die_at(quiet, f"volumes.{verb}:{point}")
    volume = quiet.create()
    broken(quiet.call, "DELETE", f"/v3/volumes/{volume}")
    restart(quiet)
    come_to_rest(quiet, ceph, guests[0])
    assert listed(quiet) == []
    assert ceph.images() == []


@pytest.mark.parametrize("point", ["begun", *map(str, range(1, 7)), "stepped", "settled"])
def test_attach(quiet: Service, ceph: Ceph, guests: tuple[Guest, Guest], point: str) -> None:
    guest = guests[0]
    before = guest.holdings()
    die_at(quiet, *at("attach", point))
    volume = quiet.create()
    broken(quiet.attach, guest.uuid, volume)
    restart(quiet)
    come_to_rest(quiet, ceph, guest)
    if quiet.volume(volume)["status"] == "in-use":
        assert guest.write(guest.wait_disk(volume), "after the crash", 1)
    tidy(quiet, guest)
    come_to_rest(quiet, ceph, guest)
    assert guest.holdings() == before


@pytest.mark.parametrize("point", ["begun", *map(str, range(7, 12)), "stepped", "settled"])
def test_detach(quiet: Service, ceph: Ceph, guests: tuple[Guest, Guest], point: str) -> None:
    guest = guests[0]
    before = guest.holdings()
    die_at(quiet, *at("detach", point))
    volume = quiet.create()
    assert quiet.attach(guest.uuid, volume).status == 200
    guest.wait_disk(volume)
    broken(quiet.detach, guest.uuid, volume)
    restart(quiet)
    quiet.rest(volume, "available")
    come_to_rest(quiet, ceph, guest)
    assert guest.holdings() == before
    tidy(quiet, guest)
    come_to_rest(quiet, ceph, guest)


def test_a_process_with_a_call_that_does_not_end_gives_way_to_another(quiet: Service, ceph: Ceph) -> None:
    """The OSD is frozen and no call to it times out: as when librados waits for ever."""
    never = {"rados_osd_op_timeout": 10_000, "rbd_call_timeout": 3}
    quiet.configure({"DEFAULT": {"stuck_call_timeout": 2, "graceful_shutdown_timeout": 5}, "ceph": never})
    quiet.start()
    [stuck] = quiet.workers()
    made: list[str] = []

    def begun() -> bool:
        """Whether a create is under way; one is when Ceph has answered within the second before it."""
        ceph.resume_osd()
        for frozen in (False, True):
            if frozen:
                ceph.pause_osd()
            answer = quiet.call("POST", "/v3/volumes", {"volume": {"size": 1}})
            if answer.status != 202:
                return False
            made.append(answer.body["volume"]["id"])
        return True

    try:
        wait(begun, timeout=30, what="a create to begin")
        last = made[-1]
        assert quiet.volume(last)["status"] == "creating"
        wait(lambda: stuck not in quiet.workers(), timeout=40, what="the process to end")
        wait(lambda: bool(quiet.workers()), timeout=20, what="another one")
        assert quiet.volume(last)["status"] == "creating"
    finally:
        ceph.resume_osd()
    quiet.rest(last, "available")
    assert set(ceph.images()) == {f"volume-{one}" for one in made}
