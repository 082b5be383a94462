# SPDX-License-Identifier: Apache-2.0
"""Backups on a real Ceph: what a guest wrote comes back, whatever else was deleted, stopped or damaged."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import LabError, wait

pytestmark = pytest.mark.real

MIB = 2**20
POOL = "backups"


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, guests: Any, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service with a backup pool."""
    ceph.add_pool(POOL)
    options = {"DEFAULT": {"backup_ceph_pool": POOL, "backup_ceph_conf": ceph.conf, "backup_ceph_user": ceph.user}}
    running = Service(tmp_path, ceph.conf, sockets, options)
    running.start()
    yield running
    running.stop()
    ceph.empty()


def begin(service: Service, volume: str, **fields: Any) -> str:
    answer = service.call("POST", "/v3/backups", {"backup": {"volume_id": volume, **fields}})
    assert answer.status == 202, answer.text
    return str(answer.body["backup"]["id"])


def status(service: Service, backup: str) -> str:
    answer = service.call("GET", f"/v3/backups/{backup}")
    return str(answer.body["backup"]["status"]) if answer.status == 200 else "gone"


def rest(service: Service, backup: str, expected: str = "available") -> None:
    wait(lambda: status(service, backup) == expected, timeout=90, what=f"backup {backup} to be {expected}")


def make(service: Service, volume: str, **fields: Any) -> str:
    made = begin(service, volume, **fields)
    rest(service, made)
    return made


def restored(service: Service, backup: str, expected: str = "available", **fields: Any) -> str:
    answer = service.call("POST", f"/v3/backups/{backup}/restore", {"restore": fields})
    assert answer.status == 202, answer.text
    volume = str(answer.body["restore"]["volume_id"])
    service.rest(volume, expected)
    rest(service, backup)
    return volume


def restored_at_once(service: Service, backup: str) -> str:
    answer = service.call("POST", f"/v3/backups/{backup}/restore", {"restore": {}})
    assert answer.status == 202, answer.text
    volume = str(answer.body["restore"]["volume_id"])
    service.rest(volume, "available")
    return volume


def above(ceph: Ceph, volume: str) -> Any:
    """What an image is a clone of."""
    return json.loads(ceph.rbd("info", f"{ceph.pool}/volume-{volume}", "--format", "json")).get("parent")


def digest(ceph: Ceph, volume: str) -> str:
    return hashlib.sha256(ceph.read(f"volume-{volume}", 2**30)).hexdigest()


def used(ceph: Ceph) -> list[str]:
    return ceph.images(POOL)


def remove(service: Service, backup: str) -> None:
    assert service.call("DELETE", f"/v3/backups/{backup}").status == 202


def test_increments_of_a_disk_in_use_come_back_whatever_was_deleted(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    one, two = guests
    volume = service.create()
    service.attach(one.uuid, volume)
    device = one.wait_disk(volume)
    written = [one.write(device, "first")]
    made = [make(service, volume, force=True)]
    for text in ("second", "third"):
        written.append(one.write(device, text))
        made.append(make(service, volume, force=True, incremental=True))
    assert len(used(ceph)) == 1
    service.detach(one.uuid, volume)

    remove(service, made[0])
    rest(service, made[0], "gone")
    assert service.manage("backup", "verify", *made[1:]).count("as they were stored") == 2
    remove(service, made[2])
    rest(service, made[2], "gone")
    copy = restored(service, made[1])
    assert service.attach(two.uuid, copy).status == 200
    assert two.sha256(two.wait_disk(copy)) == written[1]
    service.detach(two.uuid, copy)
    remove(service, made[1])
    wait(lambda: not used(ceph), timeout=60, what="the backup pool to be empty")
    for volume_id in (volume, copy):
        assert service.call("DELETE", f"/v3/volumes/{volume_id}").status == 202
    mine = {f"volume-{volume}", f"volume-{copy}"}
    wait(lambda: not mine & {*ceph.images(), *ceph.trash()}, timeout=60, what="the images to be gone")


def test_a_restored_volume_is_used_at_once_and_its_backup_deleted(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    volume = service.create()
    image = f"volume-{volume}"
    ceph.write(image, os.urandom(32 * MIB), 3 * MIB)
    before, first = ceph.read(image, 40 * MIB), make(service, volume)
    ceph.write(image, os.urandom(8 * MIB), 30 * MIB)
    then, second = digest(ceph, volume), make(service, volume, incremental=True)
    old, new = (restored_at_once(service, backup) for backup in (first, second))
    assert service.attach(guests[0].uuid, old).status == 200
    for backup in (first, second):
        remove(service, backup)
        rest(service, backup, "gone")
    device = guests[0].wait_disk(old)
    guests[0].write(device, "ours")
    service.detach(guests[0].uuid, old)
    wait(lambda: not used(ceph) and not ceph.trash(POOL), timeout=60, what="the chain to be gone")
    assert [above(ceph, copy) for copy in (old, new)] == [None, None]
    assert digest(ceph, new) == then
    assert ceph.read(f"volume-{old}", 36 * MIB, 4 * MIB) == before[4 * MIB :]
    assert ceph.read(f"volume-{old}", 5) == b"ours\n"


def test_a_volume_is_restored_in_place(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    image = f"volume-{volume}"
    ceph.write(image, b"a" * (5 * MIB), 3 * MIB)
    then = digest(ceph, volume)
    made = make(service, volume)
    ceph.write(image, b"b" * MIB, 6 * MIB)
    ceph.write(image, b"c" * MIB, 900 * MIB)
    assert digest(ceph, volume) != then
    assert restored(service, made, volume_id=volume) == volume
    assert digest(ceph, volume) == then


def test_damage_in_the_pool_is_told_and_never_written_over_a_volume(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    ceph.write(f"volume-{volume}", b"a" * (5 * MIB))
    made = make(service, volume)
    [chain] = used(ceph)
    [snap] = [line.split()[1] for line in ceph.rbd("snap", "ls", f"{POOL}/{chain}").splitlines()[1:]]
    ceph.rbd("bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4K", f"{POOL}/{chain}")
    ceph.rbd("snap", "rm", "--no-progress", f"{POOL}/{chain}@{snap}")
    ceph.rbd("snap", "create", "--no-progress", f"{POOL}/{chain}@{snap}")
    with pytest.raises(LabError, match="damaged"):
        service.manage("backup", "verify", made)
    copy = restored_at_once(service, made)
    wait(lambda: service.volume(copy)["status"] == "error", timeout=30, what="the damage to be found")
    assert any("damaged" in one for one in service.messages(copy))
    ceph.write(f"volume-{volume}", b"b")
    assert restored(service, made, volume_id=volume, expected="error_restoring") == volume
    assert ceph.read(f"volume-{volume}", 2) == b"ba"


def test_a_killed_service_finishes_its_backup_and_its_restore(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    ceph.write(f"volume-{volume}", bytes(range(256)) * (MIB // 256) * 100)
    then = digest(ceph, volume)
    made = begin(service, volume)
    wait(lambda: bool(used(ceph)), timeout=30, what="the chain to be begun")
    service.kill()
    service.start()
    rest(service, made)
    service.rest(volume, "available")
    copy = str(service.call("POST", f"/v3/backups/{made}/restore", {"restore": {}}).body["restore"]["volume_id"])
    wait(lambda: f"volume-{copy}" in ceph.images(), timeout=30, what="the new volume to be begun")
    service.kill()
    service.start()
    service.rest(copy, "available")
    assert digest(ceph, copy) == then


def test_a_backup_that_is_being_made_is_given_up_by_deleting_it(service: Service, ceph: Ceph) -> None:
    volume = service.create()
    ceph.write(f"volume-{volume}", b"a" * (300 * MIB))
    made = begin(service, volume)
    wait(lambda: bool(used(ceph)), timeout=30, what="the chain to be begun")
    remove(service, made)
    rest(service, made, "gone")
    service.rest(volume, "available")
    wait(lambda: not used(ceph), timeout=60, what="the backup pool to be empty")
    assert ceph.rbd("snap", "ls", f"volumes/volume-{volume}").strip() == ""
