# SPDX-License-Identifier: Apache-2.0
"""Groups on a real Ceph: one moment of two disks that a real guest writes to, and `kill -9` on the way to it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import Service
from functional.test_crash import broken, die_at, restart
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real

VERSION = "3.71"
#: Counts in two disks in turn, each number safe on the first before it goes to the second.
COUNTING = (
    "(n=0; while [ ! -e /tmp/enough ]; do n=$((n+1)); for disk in {disks}; do "
    "printf '%08d' $n | dd of=$disk bs=512 count=1 conv=notrunc,sync,fsync 2>/tmp/said || cp /tmp/said /tmp/failed; "
    "done; done) >/dev/null 2>&1 &"
)


@pytest.fixture
def counting(guests: tuple[Guest, Guest]) -> Iterator[Any]:
    """Has a guest count in two disks until the test is over."""
    guest, _ = guests

    def begin(devices: list[str]) -> None:
        guest.run("rm -f /tmp/enough /tmp/failed; " + COUNTING.format(disks=" ".join(devices)))
        wait(lambda: int(number_in(guest, devices[1]) or 0) > 3, timeout=30, what="the guest to count")

    yield begin
    guest.run("touch /tmp/enough; sleep 1")


def number_in(guest: Guest, device: str) -> str:
    return guest.run(f"echo 3 > /proc/sys/vm/drop_caches; dd if={device} bs=8 count=1 2>/dev/null").strip("\0 \n")


def call(service: Service, method: str, path: str, body: Any = None, user: str = "alice") -> Any:
    answer = service.call(method, path, body, version=VERSION, user=user)
    assert answer.status < 300, answer.text
    return answer.body if answer.text else None


def group_of(service: Service, *volumes: str) -> str:
    """A group, whose snapshots hold one moment, of some volumes."""
    specs = {"consistent_group_snapshot_enabled": "<is> True"}
    kind = {"group_type": {"name": "together", "group_specs": specs}}
    service.call("POST", "/v3/group_types", kind, version=VERSION, user="root")  # Conflicts if a test made it before.
    fields = {"group_type": "together", "volume_types": ["__DEFAULT__"]}
    group: str = call(service, "POST", "/v3/groups", {"group": fields})["group"]["id"]
    call(service, "PUT", f"/v3/groups/{group}", {"group": {"add_volumes": ",".join(volumes)}})
    return group


def rest(service: Service, path: str, status: str = "available") -> None:
    [name] = {"groups": "group", "group_snapshots": "group_snapshot"}[path.split("/")[2]].split()
    wait(
        lambda: call(service, "GET", path)[name]["status"] == status,
        timeout=60,
        what=f"{path} to be {status}",
    )


def gone(service: Service, path: str) -> None:
    wait(lambda: service.call("GET", path, version=VERSION).status == 404, timeout=60, what=f"{path} to be gone")


def made_from(service: Service, snapshot: str) -> dict[str, str]:
    """A new group from a group snapshot: volume of the old one → volume of the new one."""
    body = {"create-from-src": {"group_snapshot_id": snapshot}}
    group = call(service, "POST", "/v3/groups/action", body)["group"]["id"]
    rest(service, f"/v3/groups/{group}")
    parts = call(service, "GET", "/v3/snapshots/detail")["snapshots"]
    sources = {one["id"]: one["volume_id"] for one in parts}
    found = call(service, "GET", "/v3/volumes/detail")["volumes"]
    return {sources[one["snapshot_id"]]: one["id"] for one in found if one["group_id"] == group}


def end(service: Service, ceph: Ceph, guest: Guest) -> None:
    """Delete everything, and see that nothing is left in the pool."""
    for one in call(service, "GET", "/v3/group_snapshots")["group_snapshots"]:
        call(service, "DELETE", f"/v3/group_snapshots/{one['id']}")
        gone(service, f"/v3/group_snapshots/{one['id']}")
    for one in call(service, "GET", "/v3/volumes/detail")["volumes"]:
        if one["attachments"]:
            assert service.detach(guest.uuid, one["id"]).status == 202
            service.rest(one["id"], "available")
    for one in call(service, "GET", "/v3/groups")["groups"]:
        call(service, "POST", f"/v3/groups/{one['id']}/action", {"delete": {"delete-volumes": True}})
        gone(service, f"/v3/groups/{one['id']}")
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=60, what="the pool to be empty")
    assert ceph.rbd("group", "ls", ceph.pool).split() == []


def test_a_group_snapshot_holds_one_moment_of_a_writing_guest(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest], counting: Any
) -> None:
    guest, _ = guests
    volumes = [service.create(), service.create()]
    for volume in volumes:
        assert service.attach(guest.uuid, volume).status == 200
    counting([guest.wait_disk(volume) for volume in volumes])
    group = group_of(service, *volumes)
    seen = []
    for _turn in range(3):
        body = {"group_snapshot": {"group_id": group}}
        snapshot = call(service, "POST", "/v3/group_snapshots", body)["group_snapshot"]["id"]
        rest(service, f"/v3/group_snapshots/{snapshot}")
        copies = made_from(service, snapshot)
        first, second = (int(ceph.read(f"volume-{copies[volume]}", 8)) for volume in volumes)
        assert first - second in (0, 1)
        seen.append(first)
    assert len(set(seen)) == 3
    guest.run("touch /tmp/enough; sleep 1")
    assert guest.run("ls /tmp/failed 2>/dev/null || true").strip() == ""
    end(service, ceph, guest)


@pytest.fixture
def quiet(tmp_path: pathlib.Path, ceph: Ceph, guests: tuple[Guest, Guest], sockets: pathlib.Path) -> Iterator[Service]:
    """A service that is not started yet."""
    ceph.empty()
    made = Service(tmp_path, ceph.conf, sockets)
    yield made
    made.kill()
    ceph.empty()


@pytest.mark.parametrize("point", ["begun", "stepped"])
def test_a_killed_service_leaves_a_whole_group_snapshot(
    quiet: Service, ceph: Ceph, guests: tuple[Guest, Guest], point: str
) -> None:
    service, (guest, _) = quiet, guests
    service.start()
    volumes = [service.create(), service.create()]
    for number, volume in enumerate(volumes):
        ceph.write(f"volume-{volume}", str(number).encode() * 512)
    group = group_of(service, *volumes)
    service.stop()
    die_at(service, f"group_snapshots.create:{point}")
    broken(service.call, "POST", "/v3/group_snapshots", {"group_snapshot": {"group_id": group}}, version=VERSION)
    restart(service)
    [row] = call(service, "GET", "/v3/group_snapshots")["group_snapshots"]
    rest(service, f"/v3/group_snapshots/{row['id']}")
    copies = made_from(service, row["id"])
    assert [ceph.read(f"volume-{copies[volume]}", 1) for volume in volumes] == [b"0", b"1"]
    end(service, ceph, guest)
