# SPDX-License-Identifier: Apache-2.0
"""What Cinder left in a pool, clones in the old format and protected snapshots too, is taken over and can go."""

from __future__ import annotations

import contextlib
import pathlib
import uuid
from collections.abc import Iterator

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.process import LabError, wait

pytestmark = pytest.mark.real

MIB = 2**20
DATA = b"kept" * MIB


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service, and no images but its own."""
    ceph.empty()
    made = Service(tmp_path, ceph.conf, sockets)
    made.start()
    yield made
    made.stop()
    for image in [f"{ceph.pool}/{name}" for name in ceph.images()]:  # A test that failed leaves what cannot be removed.
        with contextlib.suppress(LabError):
            ceph.rbd("flatten", "--no-progress", image)
    for image in [f"{ceph.pool}/{name}" for name in ceph.images()]:
        for line in ceph.rbd("snap", "ls", image).splitlines()[1:]:
            with contextlib.suppress(LabError):
                ceph.rbd("snap", "unprotect", f"{image}@{line.split()[1]}")
    ceph.empty()


def manage(service: Service, pool: str, image: str) -> str:
    body = {"volume": {"host": pool, "ref": {"source-name": image}}}
    answer = service.call("POST", "/v3/manageable_volumes", body, user="root", version="3.8")
    assert answer.status == 202, answer.text
    volume = str(answer.body["volume"]["id"])
    service.rest(volume, "available")
    return volume


def candidates(service: Service, kind: str, pool: str) -> dict[str, bool]:
    listed = service.call("GET", f"/v3/manageable_{kind}?host={pool}", user="root", version="3.8")
    assert listed.status == 200, listed.text
    return {one["reference"]["source-name"]: one["safe_to_manage"] for one in listed.body[f"manageable-{kind}"]}


def test_old_clones_and_their_parent_live_and_go_in_any_order(service: Service, ceph: Ceph) -> None:
    parent, snap, child = f"volume-{uuid.uuid4()}", f"snapshot-{uuid.uuid4()}", f"volume-{uuid.uuid4()}"
    ceph.rbd("create", "--size", "1G", f"volumes/{parent}")
    ceph.write(parent, DATA, 8 * MIB)
    ceph.rbd("snap", "create", "--no-progress", f"volumes/{parent}@{snap}")
    ceph.rbd("snap", "protect", f"volumes/{parent}@{snap}")
    ceph.rbd("clone", "--rbd-default-clone-format", "1", f"volumes/{parent}@{snap}", f"volumes/{child}")
    [pool] = [one["name"] for one in service.call("GET", "/v3/scheduler-stats/get_pools", user="root").body["pools"]]
    assert candidates(service, "volumes", pool) == {parent: True, child: True}

    source, clone = manage(service, pool, parent), manage(service, pool, child)
    assert candidates(service, "snapshots", pool) == {snap: True}
    body = {"snapshot": {"volume_id": source, "ref": {"source-name": snap}}}
    taken = service.call("POST", "/v3/manageable_snapshots", body, user="root", version="3.8")
    assert taken.status == 202, taken.text
    snapshot = taken.body["snapshot"]["id"]
    new = service.create(snapshot_id=snapshot)
    for volume in (source, clone, new):
        assert ceph.read(f"volume-{volume}", len(DATA), 8 * MIB) == DATA

    assert service.call("DELETE", f"/v3/snapshots/{snapshot}").status == 202
    assert service.call("GET", f"/v3/snapshots/{snapshot}").status == 404
    assert candidates(service, "snapshots", pool) == {}
    assert service.call("DELETE", f"/v3/volumes/{source}").status == 202
    assert service.volume(source)["status"] == "gone"
    for volume in (clone, new):
        assert ceph.read(f"volume-{volume}", len(DATA), 8 * MIB) == DATA
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
    wait(lambda: not ceph.trash() and not ceph.images(), timeout=60, what="all images to be gone")
