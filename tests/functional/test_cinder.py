# SPDX-License-Identifier: Apache-2.0
"""From Cinder to cinderlite and back, with Cinder's own driver on the same pool: each finds the other's data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from backends import cinder
from backends.cinder import Cinder, image_of, snap_of
from backends.service import Service
from lab import packages
from lab.ceph import Ceph
from lab.process import wait

pytestmark = pytest.mark.real

MIB = 2**20
OLD, NEW = b"then" * MIB, b"now!" * MIB


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service, and no images but what the test makes."""
    ceph.empty()
    made = Service(tmp_path, ceph.conf, sockets)
    made.start()
    yield made
    made.stop()
    ceph.empty()


@pytest.fixture
def theirs(tmp_path: pathlib.Path, ceph: Ceph) -> Iterator[Cinder]:
    """Cinder's driver."""
    packages.ensure(cinder.PACKAGES)
    directory = tmp_path / "cinder"
    directory.mkdir()
    made = Cinder(directory, ceph.conf, ceph.pool, ceph.user)
    yield made
    made.stop()


def manage(service: Service, kind: str, **body: object) -> str:
    """Take something over; its id."""
    answer = service.call("POST", f"/v3/manageable_{kind}s", {kind: body}, user="root", version="3.8")
    assert answer.status == 202, answer.text
    return str(answer.body[kind]["id"])


def pool_of(service: Service) -> str:
    [pool] = service.call("GET", "/v3/scheduler-stats/get_pools", user="root").body["pools"]
    return str(pool["name"])


def snapshot_status(service: Service, snapshot: str) -> str:
    answer = service.call("GET", f"/v3/snapshots/{snapshot}")
    return str(answer.body["snapshot"]["status"]) if answer.status == 200 else "gone"


def test_a_volume_of_cinders_with_a_snapshot_and_a_clone(service: Service, ceph: Ceph, theirs: Cinder) -> None:
    volume, clone = cinder.volume(), cinder.volume()
    snapshot = cinder.snapshot(volume)
    theirs.call("create_volume", volume)
    ceph.write(image_of(volume), OLD, 8 * MIB)
    theirs.call("create_snapshot", snapshot)
    ceph.write(image_of(volume), NEW, 8 * MIB)
    theirs.call("create_volume_from_snapshot", clone, snapshot)
    theirs.call("unmanage_snapshot", snapshot)
    for one in (volume, clone):
        theirs.call("unmanage", one)

    pool = pool_of(service)
    ours = manage(service, "volume", host=pool, ref={"source-name": image_of(volume)})
    copy = manage(service, "volume", host=pool, ref={"source-name": image_of(clone)})
    for taken in (ours, copy):
        service.rest(taken, "available")
    kept = manage(service, "snapshot", volume_id=ours, ref={"source-name": snap_of(snapshot)})
    wait(lambda: snapshot_status(service, kept) == "available", timeout=30, what="the snapshot to be taken over")
    made = service.create(snapshot_id=kept)
    for taken, data in ((ours, NEW), (copy, OLD), (made, OLD)):
        assert ceph.read(f"volume-{taken}", len(data), 8 * MIB) == data
    assert (
        service.call("POST", f"/v3/volumes/{ours}/action", {"revert": {"snapshot_id": kept}}, version="3.40").status
        == 202
    )
    service.rest(ours, "available")
    assert ceph.read(f"volume-{ours}", len(OLD), 8 * MIB) == OLD

    assert service.call("DELETE", f"/v3/snapshots/{kept}").status == 202
    for taken in (ours, copy, made):
        assert service.call("DELETE", f"/v3/volumes/{taken}").status == 202
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=60, what="all of it to be gone")


def test_a_volume_of_ours_with_a_snapshot_and_a_clone(service: Service, ceph: Ceph, theirs: Cinder) -> None:
    ours = service.create()
    ceph.write(f"volume-{ours}", OLD, 8 * MIB)
    made = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": ours}})
    kept = str(made.body["snapshot"]["id"])
    wait(lambda: snapshot_status(service, kept) == "available", timeout=30, what="the snapshot")
    ceph.write(f"volume-{ours}", NEW, 8 * MIB)
    copy = service.create(snapshot_id=kept)
    service.rest(copy, "available")
    for path in (f"/v3/snapshots/{kept}", f"/v3/volumes/{copy}", f"/v3/volumes/{ours}"):
        answer = service.call("POST", f"{path}/action", {"os-unmanage": {}}, user="root")
        assert answer.status == 202, answer.text
    wait(lambda: service.volume(ours)["status"] == "gone", timeout=30, what="cinderlite to let go of it")
    assert set(ceph.images()) == {f"volume-{ours}", f"volume-{copy}"}

    volume, clone = cinder.volume(), cinder.volume()
    for one, image in ((volume, ours), (clone, copy)):
        reference = {"source-name": f"volume-{image}"}
        assert theirs.call("manage_existing_get_size", one, reference) == 1
        theirs.call("manage_existing", one, reference)
    snapshot = cinder.snapshot(volume)
    reference = {"source-name": f"snapshot-{kept}"}
    assert theirs.call("manage_existing_snapshot_get_size", snapshot, reference) == 1
    theirs.call("manage_existing_snapshot", snapshot, reference)
    new = cinder.volume()
    theirs.call("create_volume_from_snapshot", new, snapshot)
    for one, data in ((volume, NEW), (clone, OLD), (new, OLD)):
        assert ceph.read(image_of(one), len(data), 8 * MIB) == data

    for one in (new, clone):
        theirs.call("delete_volume", one)
    theirs.call("delete_snapshot", snapshot)
    theirs.call("delete_volume", volume)
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=60, what="all of it to be gone")
