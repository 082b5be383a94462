# SPDX-License-Identifier: Apache-2.0
"""Projects with RBD namespaces of their own on a real Ceph: a guest's bytes stay the same wherever the image goes."""

from __future__ import annotations

import hashlib
import pathlib
import tempfile

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real


def digest(ceph: Ceph, image: str) -> str:
    """Of the start of an image, wherever it is, read by the rbd command."""
    with tempfile.TemporaryDirectory(dir=ceph.directory) as directory:
        path = pathlib.Path(directory) / "image"
        ceph.rbd("export", "--no-progress", image, str(path))
        with path.open("rb") as file:
            return hashlib.sha256(file.read(16 * 2**20)).hexdigest()


def test_guests_and_projects_share_what_they_are_given(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    one, two = guests
    old = service.create()
    service.rest(old, "available")
    ceph.write(f"volume-{old}", b"golden" * 1000)
    service.stop()
    service.configure({"ceph": {"rbd_namespace_per_project": True}})
    service.start()
    volume = service.create(source_volid=old)
    service.rest(volume, "available")
    assert ceph.images("volumes/demo") == [f"volume-{volume}"]
    assert ceph.images() == [f"volume-{old}"]

    answer = service.attach(one.uuid, volume)
    assert answer.status == 200, answer.text
    device = one.wait_disk(volume)
    assert one.run(f"head -c 6 {device}").strip() == "golden"
    written = one.write(device, "pattern-of-the-guest")
    assert service.detach(one.uuid, volume).status == 202
    service.rest(volume, "available")
    one.wait_no_disk(volume)

    clone = service.create(source_volid=volume)
    service.rest(clone, "available")
    assert service.attach(two.uuid, clone).status == 200
    assert two.sha256(two.wait_disk(clone)) == written
    assert service.detach(two.uuid, clone).status == 202
    service.rest(clone, "available")
    two.wait_no_disk(clone)

    before = digest(ceph, f"volumes/demo/volume-{clone}")
    made = service.call("POST", "/v3/volume-transfers", {"transfer": {"volume_id": clone}}).body["transfer"]
    accept = {"accept": {"auth_key": made["auth_key"]}}
    answer = service.call("POST", f"/v3/volume-transfers/{made['id']}/accept", accept, user="bob")
    assert answer.status == 202, answer.text
    theirs = f"/v3/volumes/{clone}"
    wait(
        lambda: service.call("GET", theirs, user="bob").body["volume"]["status"] == "available",
        timeout=60, what="the volume to have moved",
    )  # fmt: skip
    assert ceph.images("volumes/demo") == [f"volume-{volume}"]
    assert ceph.images("volumes/other") == [f"volume-{clone}"]
    assert digest(ceph, f"volumes/other/volume-{clone}") == before
    assert "parent" not in ceph.rbd("info", f"volumes/other/volume-{clone}")
    assert service.manage("audit") == "the database and Ceph agree\n"

    assert service.call("DELETE", theirs, user="bob").status == 202
    for left in (volume, old):
        assert service.call("DELETE", f"/v3/volumes/{left}").status == 202
    places = "volumes", "volumes/demo", "volumes/other"
    wait(lambda: not any(ceph.images(one) or ceph.trash(one) for one in places), timeout=30, what="all to be gone")
