# SPDX-License-Identifier: Apache-2.0
"""Backups in another Ceph cluster, restored by another service that has nothing but their records."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.process import wait

pytestmark = pytest.mark.real

MIB = 2**20
POOL = "backups"


@pytest.fixture(scope="module")
def vault(lab_directory: pathlib.Path) -> Iterator[Ceph]:
    """Another cluster, for backups only."""
    cluster = Ceph(lab_directory / "vault", osd_size_gib=2)
    try:
        cluster.start()
        cluster.add_pool(POOL)
        yield cluster
    finally:
        cluster.destroy()


def service(directory: pathlib.Path, ceph: Ceph, vault: Ceph, sockets: pathlib.Path) -> Service:
    options = {"backup_ceph_pool": POOL, "backup_ceph_conf": vault.conf, "backup_ceph_user": vault.user}
    made = Service(directory, ceph.conf, sockets, {"DEFAULT": options})
    made.start()
    return made


def rest(service: Service, backup: str) -> None:
    path = f"/v3/backups/{backup}"
    wait(lambda: service.call("GET", path).body["backup"]["status"] == "available", timeout=60, what="the backup")


def kept(vault: Ceph) -> int:
    [chain] = vault.images(POOL)
    return len(vault.rbd("snap", "ls", f"{POOL}/{chain}").splitlines()[1:])


def test_another_service_restores_from_another_cluster(
    tmp_path: pathlib.Path, ceph: Ceph, vault: Ceph, sockets: pathlib.Path
) -> None:
    first, then = service(tmp_path / "first", ceph, vault, sockets), {0: b"a" * (5 * MIB), 900 * MIB: b"b" * MIB}
    try:
        volume = first.create(name="lost")
        for offset, data in then.items():
            ceph.write(f"volume-{volume}", data, offset)
            answer = first.call(
                "POST", "/v3/backups", {"backup": {"volume_id": volume, "incremental": offset > 0}}, version="3.71"
            )
            backup = str(answer.body["backup"]["id"])
            rest(first, backup)
        record = first.call("GET", f"/v3/backups/{backup}/export_record", user="root").body["backup-record"]
        assert kept(vault) == 2
        first.kill()
    finally:
        first.stop()
    ceph.empty()

    second = service(tmp_path / "second", ceph, vault, sockets)
    try:
        body = {"backup-record": record}
        assert second.call("POST", "/v3/backups/import_record", body, user="root").status == 201
        rest(second, backup)
        answer = second.call("POST", f"/v3/backups/{backup}/restore", {"restore": {}}, user="root")
        copy = str(answer.body["restore"]["volume_id"])
        second.rest(copy, "available")
        for offset, data in then.items():
            assert ceph.read(f"volume-{copy}", len(data), offset) == data
        assert not any(ceph.read(f"volume-{copy}", 100 * MIB, 6 * MIB))
        assert second.call("DELETE", f"/v3/backups/{backup}", user="root").status == 202
        wait(lambda: kept(vault) == 1, timeout=60, what="the backup to be gone, and only that")
    finally:
        second.stop()
        ceph.empty()
