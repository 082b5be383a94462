# SPDX-License-Identifier: Apache-2.0
"""The database against Ceph: what is found, what is explained by work, what is repaired and what never is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from typing import Any

import pytest
from sqlalchemy import update

from cinderlite import app as composition
from cinderlite import errors
from cinderlite.cmd import manage
from cinderlite.context import World
from cinderlite.core import audit, audit_backups, explain
from cinderlite.core.progress import silent
from cinderlite.db import models
from cinderlite.db.session import Database
from cinderlite.keys import luks
from conftest import PROJECT, Client, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

GIB = 2**30
two = pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)


def found(world: World, *, repair: bool = False) -> list[tuple[str, str]]:
    return [(one.kind, one.subject) for one in audit.audit(world, repair=repair)]


def snapshot(client: Client, volume: str) -> str:
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    assert made.status_code == 202, made.text
    return str(made.json["snapshot"]["id"])


def status(client: Client, kind: str, which: str) -> str:
    return str(client.get(f"/v3/{kind}s/{which}").json[kind]["status"])


def change(world: World, volume: str, **values: Any) -> None:
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == volume).values(**values))


def held(world: World) -> Any:
    """All that the fake clusters hold."""
    return [
        (dict(one.stored), {key: dict(value) for key, value in one.snaps.items()}, dict(one.bin))
        for one in (cluster_of(world, name) for name in world.backends)
    ]


def test_nothing_is_found_where_all_is_well(client: Client, world: World, cluster: FakeCluster) -> None:
    first = client.volume()["id"]
    taken = snapshot(client, first)
    client.volume(snapshot_id=taken)
    made = client.post("/v3/backups", {"backup": {"volume_id": first}})
    assert made.status_code == 202, made.text
    settle(world)
    gone = client.volume()["id"]
    client.volume(source_volid=gone)
    assert client.delete(f"/v3/volumes/{gone}").status_code == 202
    cluster.create("somebody-elses", GIB)
    cluster.snapshot(f"volume-{first}", "somebody-elses")
    settle(world)
    assert cluster.bin  # Held by its clone, and the purge is tried again.
    assert found(world) == []


def test_a_volume_without_its_image(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    del cluster.stored[f"volume-{volume}"]
    assert found(world) == [("missing-image", f"volume-{volume}")]
    assert status(client, "volume", volume) == "available"
    [repaired] = audit.audit(world, repair=True)
    assert repaired.repaired
    assert status(client, "volume", volume) == "error"
    assert found(world) == []
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202


def test_an_image_in_the_trash_is_brought_back_by_hand(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    image_id = cluster.trash(f"volume-{volume}")
    [one] = audit.audit(world, repair=True)
    assert not one.repaired
    assert one.remedy == f"rbd -c /etc/ceph/ceph.conf trash restore --pool volumes {image_id}"
    assert status(client, "volume", volume) == "available"


@two
def test_an_image_in_another_pool_is_not_gone(client: Client, world: World) -> None:
    volume = client.volume()["id"]
    name = f"volume-{volume}"
    cluster_of(world, "fast").stored[name] = cluster_of(world).stored.pop(name)
    before = held(world)
    assert found(world, repair=True) == [("missing-image", name), ("extra-image", name)]
    assert status(client, "volume", volume) == "available"
    cluster_of(world, "fast").down = True
    assert found(world, repair=True) == [("missing-image", name), ("unreachable", "nvme")]
    assert status(client, "volume", volume) == "available"
    assert held(world) == before


def test_a_size_that_differs(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.grow(f"volume-{volume}", 2 * GIB + 1)
    assert found(world, repair=True) == [("wrong-size", f"volume-{volume}")]
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["size"] == 3
    assert cluster.stored[f"volume-{volume}"][1] == 2 * GIB + 1
    assert found(world) == []


def test_the_header_of_an_encrypted_volume_is_none_of_its_size(
    client: Client, world: World, cluster: FakeCluster
) -> None:
    volume = client.volume()["id"]
    change(world, volume, encryption_key_id=str(uuid.uuid4()))
    cluster.grow(f"volume-{volume}", GIB + luks.DATA_OFFSET)
    assert found(world) == []
    assert explain.explain(world, volume)["remarks"] == []
    cluster.grow(f"volume-{volume}", 2 * GIB + luks.DATA_OFFSET)
    assert found(world, repair=True) == [("wrong-size", f"volume-{volume}")]
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["size"] == 2


def test_snapshots_that_only_one_side_has(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    name, stray, taken = f"volume-{volume}", uuid.uuid4(), snapshot(client, volume)
    cluster.remove_snapshot(name, f"snapshot-{taken}")
    leaked = [f"snapshot-{stray}", f"backup.{stray}.snap", f"image-cache-{stray}", f"volume-{stray}.clone_snap"]
    for one in leaked:
        cluster.snapshot(name, one)
    cluster.group_snapshot(f"group_snapshot-{stray}", [name])
    kept = dict(cluster.snaps[cluster.info(name).id])
    everything = [*leaked, f"group_snapshot-{stray}"]
    expected = {
        ("missing-snapshot", f"{name}@snapshot-{taken}"),
        *(("leaked-snapshot", f"{name}@{one}") for one in everything),
    }
    assert set(found(world, repair=True)) == expected
    assert status(client, "snapshot", taken) == "error"
    assert cluster.snaps[cluster.info(name).id] == kept
    assert set(found(world)) == {one for one in expected if one[0] != "missing-snapshot"}


def test_an_image_that_no_volume_has_is_never_touched(
    client: Client, admin: Client, world: World, cluster: FakeCluster
) -> None:
    let_go, stranger = admin.volume()["id"], f"volume-{uuid.uuid4()}"
    assert admin.post(f"/v3/volumes/{let_go}/action", {"os-unmanage": {}}).status_code == 202
    cluster.create(stranger, GIB)
    cluster.trash(stranger)
    cluster.create(stranger, GIB)
    before = held(world)
    seen = {(one.kind, one.subject.partition(" ")[0]): one for one in audit.audit(world, repair=True)}
    assert set(seen) == {("extra-image", f"volume-{let_go}"), ("extra-image", stranger), ("trash", stranger)}
    assert not any(one.repaired for one in seen.values())
    assert "unmanaged" in seen["extra-image", f"volume-{let_go}"].what
    assert f"cinder manage testhost@ceph#ceph {stranger}" in seen["extra-image", stranger].remedy
    assert held(world) == before


def test_a_purge_that_waits_long_is_begun_again(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.children.add(cluster.info(f"volume-{volume}").id)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world, passes=10)
    assert found(world) == []
    settle(world, passes=10)
    [waits] = audit.audit(world)
    assert waits.kind == "purge-waits"
    cluster.children.clear()
    [again] = audit.audit(world, repair=True)
    assert again.repaired
    with world.db.read() as session:
        assert session.get_one(models.Volume, volume).lease_until == 0.0


def test_work_under_way_explains_everything(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, source = client.volume()["id"], client.volume()["id"]
    cluster.grow(f"volume-{volume}", 2 * GIB)
    cluster.snapshot(f"volume-{source}", f"volume-{volume}.clone_snap")
    old = f"volume-{uuid.uuid4()}"
    cluster.create(old, GIB)
    change(world, volume, busy=1, status="managing", intent={"verb": "manage", "image": old})
    assert found(world) == []
    change(world, volume, busy=0, status="available", intent=None)
    assert len(found(world)) == 3


def test_what_changes_meanwhile_is_no_finding(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go on between the readings of the rows and Ceph's."""
    volume = client.volume()["id"]
    look = audit._look

    def meanwhile(*arguments: Any) -> Any:
        assert client.delete(f"/v3/volumes/{volumes.pop()}").status_code == 202
        volumes.append(client.volume()["id"])
        taken = snapshot(client, volume)
        size = client.get(f"/v3/volumes/{volume}").json["volume"]["size"] + 1
        assert client.post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": size}}).status_code == 202
        seen = look(*arguments)
        assert client.delete(f"/v3/snapshots/{taken}").status_code == 202
        return seen

    volumes = [client.volume()["id"]]
    monkeypatch.setattr(audit, "_look", meanwhile)
    assert found(world) == []


def test_a_migration_that_nobody_is_at_work_on(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    del cluster.stored[f"volume-{volume}"]
    cluster.migrations[f"volume-{volume}"] = "prepared"
    [one] = audit.audit(world, repair=True)
    assert (one.kind, one.repaired) == ("migration", False)
    assert status(client, "volume", volume) == "available"


def test_the_command(
    client: Client,
    world: World,
    cluster: FakeCluster,
    vault: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["cinderlite-manage", "audit", *words])
        done = manage.main()
        cluster.down = vault.down = False  # The command closed them.
        return done, capsys.readouterr().out

    monkeypatch.setattr(composition, "real_world", lambda _conf: world)
    volume = client.volume()["id"]
    assert run() == (0, "the database and Ceph agree\n")
    cluster.grow(f"volume-{volume}", 2 * GIB)
    done, text = run()
    assert done == 1
    assert text == (
        f"ceph: wrong-size: volume-{volume}: the volume has 1 GiB, its image {2 * GIB} bytes "
        "-> --repair would: set the volume's size to 2 GiB\n"
    )
    done, text = run("--repair", "--json")
    assert done == 0
    [told] = json.loads(text)
    assert (told["kind"], told["repairable"], told["repaired"]) == ("wrong-size", True, True)


def test_without_the_database_it_is_not_ceph_that_is_to_blame(world: World) -> None:
    nowhere = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing", 1)
    with contextlib.closing(nowhere), pytest.raises(errors.DatabaseUnavailable):
        list(audit.audit(dataclasses.replace(world, db=nowhere)))


def test_a_status_that_its_attachments_contradict(client: Client, world: World, hypervisor: FakeHypervisor) -> None:
    volume, server = client.volume()["id"], hypervisor.add_server("vm", PROJECT).id
    change(world, volume, status="in-use")
    [one] = audit.audit(world, repair=True)
    assert (one.kind, one.subject, one.repaired) == ("wrong-status", f"volume-{volume}", False)
    assert f"openstack volume set --state available {volume}" in one.remedy
    change(world, volume, status="available")
    path = f"/v2.1/servers/{server}/os-volume_attachments"
    assert client.post(path, {"volumeAttachment": {"volumeId": volume}}).status_code == 200
    assert found(world) == []
    change(world, volume, status="available")
    [one] = audit.audit(world)
    assert (one.kind, one.what) == ("wrong-status", "the volume is available, but is attached")


# -- backups


def backup(client: Client, volume: str, **fields: Any) -> str:
    made = client.post("/v3/backups", {"backup": {"volume_id": volume, **fields}})
    assert made.status_code == 202, made.text
    return str(made.json["backup"]["id"])


def test_backups_that_are_not_where_they_should_be(client: Client, world: World, vault: FakeCluster) -> None:
    volume, other = client.volume()["id"], client.volume()["id"]
    full, more = backup(client, volume), backup(client, volume, incremental=True)
    lost = backup(client, other)
    assert found(world) == []
    vault.remove_snapshot(f"volume-{volume}.backup.{full}", f"backup.{more}.snap")
    vault.trash(f"volume-{other}.backup.{lost}")
    seen = {one.subject: one for one in audit.audit(world, repair=True)}
    assert {one.kind for one in seen.values()} == {"missing-backup"}
    assert set(seen) == {f"backup {more}", f"backup {lost}"}
    assert (seen[f"backup {more}"].repaired, seen[f"backup {lost}"].repaired) == (True, False)
    assert f"rbd -c /etc/ceph/ceph.conf trash restore --pool {vault.pool}" in seen[f"backup {lost}"].remedy
    assert [status(client, "backup", one) for one in (full, more, lost)] == ["available", "error", "available"]
    assert [one.subject for one in audit.audit(world)] == [f"backup {lost}"]
    # What is in error can be deleted, though nothing of it is there.
    assert client.delete(f"/v3/backups/{more}").status_code == 202
    assert client.get(f"/v3/backups/{more}").status_code == 404


def test_backups_that_nobody_knows_are_never_touched(client: Client, world: World, vault: FakeCluster) -> None:
    volume = client.volume()["id"]
    full = backup(client, volume)
    chain, stranger = f"volume-{volume}.backup.{full}", f"volume-{uuid.uuid4()}.backup.{uuid.uuid4()}"
    unknown = f"backup.{uuid.uuid4()}.snap"
    vault.snapshot(chain, unknown)
    vault.create(stranger, GIB)
    vault.trash(stranger)
    vault.create(stranger, GIB)
    vault.create("volume-of-somebody-else", GIB)
    before = dict(vault.stored), {key: dict(value) for key, value in vault.snaps.items()}, dict(vault.bin)
    seen = {(one.kind, one.subject.partition(" (")[0]): one for one in audit.audit(world, repair=True)}
    assert set(seen) == {
        ("unknown-backup", f"{chain}@{unknown}"), ("unknown-backup", f"image {stranger}"), ("trash", stranger)
    }  # fmt: skip
    assert not any(one.repaired for one in seen.values())
    assert "rebuild --add" in seen["unknown-backup", f"image {stranger}"].remedy
    assert (dict(vault.stored), {key: dict(value) for key, value in vault.snaps.items()}, dict(vault.bin)) == before


def test_backups_that_come_and_go_are_no_finding(
    client: Client, world: World, vault: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    going = backup(client, volume)
    read = vault.images

    def meanwhile(prefix: str) -> set[str]:
        """One is deleted and another one made between the rows and what the pool is asked."""
        nonlocal going
        assert client.delete(f"/v3/backups/{going}").status_code == 202
        going = backup(client, volume)
        return read(prefix)

    monkeypatch.setattr(vault, "images", meanwhile)
    # One look is enough for that; the second is for what comes and goes within the first.
    assert audit_backups.once(world, vault, silent, "") == {}


def test_a_backup_pool_that_does_not_answer(client: Client, world: World, vault: FakeCluster) -> None:
    backup(client, client.volume()["id"])
    vault.down = True
    [one] = audit.audit(world)
    assert (one.kind, one.backend, one.subject) == ("unreachable", "backups", vault.pool)
