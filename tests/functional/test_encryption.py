# SPDX-License-Identifier: Apache-2.0
"""An encrypted volume on a real Ceph: what a guest writes is read by another guest, and by nobody else."""

from __future__ import annotations

import pathlib
import tempfile

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real
LUKS = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}


@pytest.fixture
def encrypting(service: Service, ceph: Ceph) -> Service:
    """The service with a key store, a type `gold` of encrypted volumes, and a backup pool."""
    service.stop()
    ceph.add_pool("backups")
    path = service.directory / "keys"
    path.write_text("ab" * 32 + "\n", encoding="ascii")
    path.chmod(0o600)
    vault = {"backup_ceph_pool": "backups", "backup_ceph_conf": ceph.conf, "backup_ceph_user": ceph.user}
    service.configure({"DEFAULT": vault, "encryption": {"key_store": "database", "key_file": path}})
    service.start()
    made = service.call("POST", "/v3/types", {"volume_type": {"name": "gold"}}, user="root").body["volume_type"]["id"]
    answer = service.call("POST", f"/v3/types/{made}/encryption", {"encryption": LUKS}, user="root")
    assert answer.status == 200, answer.text
    return service


def raw(ceph: Ceph, volume: str) -> bytes:
    """What Ceph has of a volume."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "image"
        ceph.rbd("export", f"{ceph.pool}/volume-{volume}", str(path))
        with path.open("rb") as file:
            return file.read(32 * 2**20)


def from_a_backup(service: Service, volume: str) -> str:
    """A new volume, which can be used while it still shares the backup's data."""
    made = service.call("POST", "/v3/backups", {"backup": {"volume_id": volume}}).body["backup"]["id"]
    path = f"/v3/backups/{made}"
    wait(lambda: service.call("GET", path).body["backup"]["status"] == "available", timeout=60, what="the backup")
    answer = service.call("POST", f"{path}/restore", {"restore": {}})
    assert answer.status == 202, answer.text
    assert service.call("DELETE", path).status == 202
    return str(answer.body["restore"]["volume_id"])


def test_only_guests_read_what_guests_wrote(encrypting: Service, ceph: Ceph, guests: tuple[Guest, Guest]) -> None:
    service, (one, two) = encrypting, guests
    before = one.holdings()
    volume = service.create(volume_type="gold")
    service.rest(volume, "available")
    answer = service.attach(one.uuid, volume)
    assert answer.status == 200, answer.text
    device = one.wait_disk(volume)
    written = one.write(device, "pattern-of-the-guest")
    one.run(f"[ $(cat /sys/block/{device.removeprefix('/dev/')}/size) = 2097152 ]")
    grow = {"os-extend": {"new_size": 2}}
    assert service.call("POST", f"/v3/volumes/{volume}/action", grow, version="3.42").status == 202
    wait(
        lambda: one.run(f"cat /sys/block/{device.removeprefix('/dev/')}/size").strip() == "4194304",
        timeout=20, what="the disk to grow",
    )  # fmt: skip
    service.rest(volume, "in-use")
    assert service.detach(one.uuid, volume).status == 202
    service.rest(volume, "available")
    one.wait_no_disk(volume)
    assert one.holdings() == before

    stored = raw(ceph, volume)
    assert stored.startswith(b"LUKS\xba\xbe")
    assert b"pattern-of-the-guest" not in stored

    clone = service.create(size=2, source_volid=volume)
    restored = from_a_backup(service, volume)
    for made in (volume, clone, restored):
        answer = service.attach(two.uuid, made)
        assert answer.status == 200, answer.text
        assert two.sha256(two.wait_disk(made)) == written
        assert service.detach(two.uuid, made).status == 202
        service.rest(made, "available")
        assert service.call("DELETE", f"/v3/volumes/{made}").status == 202
    wait(lambda: not ceph.images() and not ceph.trash(), timeout=30, what="the pool to be empty")
