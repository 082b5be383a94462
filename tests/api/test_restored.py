# SPDX-License-Identifier: Apache-2.0
"""Volumes restored from backups of the same cluster: used at once, made whole and checked later, in nobody's way."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy

from cinderlite.context import World
from cinderlite.core import reconcile
from cinderlite.db import models
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

GIB = 2**30


class Killed(BaseException):
    """The process ends here."""


def write(cluster: FakeCluster, volume: str, text: str) -> None:
    """Let a guest write."""
    with cluster.opened(f"volume-{volume}", write=True) as image:
        image.write(0, text.encode())


def read(cluster: FakeCluster, volume: str) -> str:
    """What a guest reads."""
    with cluster.opened(f"volume-{volume}") as image:
        return image.read(0, 64).rstrip(b"\0").decode()


def backup(client: Client, volume: str, **fields: Any) -> str:
    made = client.post("/v3/backups", {"backup": {"volume_id": volume, **fields}})
    assert made.status_code == 202, made.text
    return str(made.json["backup"]["id"])


def restore(client: Client, backup_id: str, **fields: Any) -> str:
    made = client.post(f"/v3/backups/{backup_id}/restore", {"restore": fields})
    assert made.status_code == 202, made.text
    return str(made.json["restore"]["volume_id"])


def status(client: Client, volume: str) -> str:
    return str(client.get(f"/v3/volumes/{volume}").json["volume"]["status"])


def depth(cluster: FakeCluster, volume: str) -> int:
    return cluster.depth(f"volume-{volume}", 9)


def row(world: World, volume: str) -> models.Volume:
    with world.db.read() as session:
        return session.get_one(models.Volume, volume)


def rows(world: World, model: type[Any]) -> list[Any]:
    with world.db.read() as session:
        return list(session.scalars(sqlalchemy.select(model)))


def remove(client: Client, backup_id: str) -> None:
    assert client.delete(f"/v3/backups/{backup_id}").status_code == 202


def remove_for_good(client: Client, world: World, backup_id: str) -> None:
    remove(client, backup_id)
    settle(world)


def abandon(world: World) -> None:
    """Let this process's leases lapse, as a dead one's do."""
    with world.db.write() as session:
        for machine in reconcile.MACHINES:
            session.execute(sqlalchemy.update(machine.model).values(lease_owner=None, lease_until=0.0))


def dying(cluster: FakeCluster, at: int) -> None:
    """Let the process end at the `at`-th place where a cluster is about to change, or just was."""
    left = at

    def life() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            cluster.life = lambda: None
            raise Killed

    cluster.life = life


@pytest.fixture
def chain(client: Client, cluster: FakeCluster) -> tuple[str, list[str]]:
    """A volume that is "three" by now, and its backups as "one", "two" and "three", the later ones incremental."""
    volume = client.volume()["id"]
    made: list[str] = []
    for text in ("one", "two", "three"):
        write(cluster, volume, text)
        made.append(backup(client, volume, incremental=bool(made)))
    return volume, made


def test_every_point_of_a_chain_is_used_at_once_and_made_whole_later(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, chain: tuple[str, list[str]]
) -> None:
    volumes = [restore(client, one) for one in chain[1]]
    for volume, text in zip(volumes, ("one", "two", "three"), strict=True):
        assert (status(client, volume), depth(cluster, volume), read(cluster, volume)) == ("available", 1, text)
    assert vault.parents == {}
    write(cluster, volumes[0], "ours")
    settle(world)
    for volume, text in zip(volumes, ("ours", "two", "three"), strict=True):
        assert (status(client, volume), depth(cluster, volume), read(cluster, volume)) == ("available", 0, text)
        assert (row(world, volume).restored_from, row(world, volume).clone_depth) == (None, 0)
    assert rows(world, models.Flatten) == []


def test_it_is_as_big_as_is_asked_for(client: Client, cluster: FakeCluster, chain: tuple[str, list[str]]) -> None:
    made = client.at("3.47").volume(size=3, backup_id=chain[1][0])
    assert (made["status"], made["size"], depth(cluster, made["id"])) == ("available", 3, 1)
    assert cluster.info(f"volume-{made['id']}").size_bytes == 3 * GIB


@pytest.mark.parametrize("conf", [{"quota_volumes": 2}], indirect=True)
def test_restored_volumes_are_counted(client: Client, chain: tuple[str, list[str]]) -> None:
    restore(client, chain[1][0])
    path = f"/v3/backups/{chain[1][0]}/restore"
    assert client.post(path, {"restore": {}}).status_code == 413


def test_a_backup_is_deleted_before_what_was_restored_is_whole(
    client: Client, admin: Client, cluster: FakeCluster, vault: FakeCluster, world: World, hypervisor: FakeHypervisor
) -> None:
    source = client.volume()["id"]
    write(cluster, source, "one")
    one = backup(client, source)
    volume, server = restore(client, one), hypervisor.add_server("vm", PROJECT).id
    body = {"volumeAttachment": {"volumeId": volume}}
    client.post(f"/v2.1/servers/{server}/os-volume_attachments", body)
    before = admin.get(f"/v3/os-quota-sets/{PROJECT}?usage=True").json["quota_set"]
    remove(client, one)
    assert client.get(f"/v3/backups/{one}").status_code == 404
    assert client.delete(f"/v3/backups/{one}").status_code == 404
    for query in ("", "?status=deleted"):
        assert client.get(f"/v3/backups{query}").json["backups"] == []
    after = admin.get(f"/v3/os-quota-sets/{PROJECT}?usage=True").json["quota_set"]
    assert (before["backups"]["in_use"], after["backups"]["in_use"]) == (1, 0)
    assert (before["backup_gigabytes"]["in_use"], after["backup_gigabytes"]["in_use"]) == (1, 0)
    assert (vault.images(""), len(vault.trashed())) == (set(), 1)
    assert (status(client, volume), read(cluster, volume)) == ("in-use", "one")

    settle(world)
    assert (status(client, volume), read(cluster, volume), depth(cluster, volume)) == ("in-use", "one", 0)
    assert (vault.bin, vault.objects, rows(world, models.Backup)) == ({}, {}, [])
    assert client.at("3.5").get("/v3/messages").json["messages"] == []


def test_a_chain_outlives_its_backups_for_as_long_as_it_is_needed(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, chain: tuple[str, list[str]]
) -> None:
    """A deleted volume is not made whole; the clone that needs its image keeps the chain, too."""
    restored = restore(client, chain[1][1])
    clone = client.volume(source_volid=restored)["id"]
    assert client.delete(f"/v3/volumes/{restored}").status_code == 202
    for one in chain[1]:
        remove(client, one)
    settle(world)
    assert read(cluster, clone) == "two"
    assert (len(vault.trashed()), client.get("/v3/backups").json["backups"]) == (1, [])
    assert client.delete(f"/v3/volumes/{clone}").status_code == 202
    settle(world)
    assert (vault.bin, rows(world, models.Backup)) == ({}, [])
    assert {name for name in cluster.stored if name != f"volume-{chain[0]}"} == set()
    assert cluster.bin == {}


def test_an_increment_after_a_deleted_one_has_nothing_to_be_one_to(
    client: Client, world: World, cluster: FakeCluster, vault: FakeCluster
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)
    restored = restore(client, one)
    remove(client, one)
    body = {"backup": {"volume_id": volume, "incremental": True}}
    assert client.post("/v3/backups", body).status_code == 400
    again = backup(client, volume)
    settle(world)
    assert read(cluster, restored) == "one"
    assert vault.images("") == {f"volume-{volume}.backup.{again}"}
    assert read(cluster, restore(client, again)) == "one"


def test_elsewhere_it_is_copied(client: Client, cluster: FakeCluster, vault: FakeCluster) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)
    vault.cluster_id = "another"
    assert depth(cluster, copied := restore(client, one)) == 0
    vault.cluster_id = cluster.cluster_id
    del cluster.others[vault.pool]  # Our user has no right to read there.
    assert depth(cluster, second := restore(client, one)) == 0
    assert [read(cluster, made) for made in (copied, second)] == ["one", "one"]
    assert [status(client, made) for made in (copied, second)] == ["available", "available"]


@pytest.mark.parametrize("conf", [{"ceph__rbd_namespace_per_project": True}], indirect=True)
def test_into_a_projects_namespace_it_is_copied(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    copied = restore(client, backup(client, volume))
    assert (status(client, copied), depth(cluster, copied), read(cluster, copied)) == ("available", 0, "one")


def test_another_projects_backup_is_none(stranger: Client, chain: tuple[str, list[str]]) -> None:
    assert stranger.post(f"/v3/backups/{chain[1][0]}/restore", {"restore": {}}).status_code == 404
    body = {"volume": {"size": 1, "backup_id": chain[1][0]}}
    assert stranger.at("3.47").post("/v3/volumes", body).status_code == 404


@pytest.mark.parametrize("in_use", [False, True])
def test_damage_is_told(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, hypervisor: FakeHypervisor, in_use: bool
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "good")
    one = backup(client, volume)
    [image_id] = vault.snaps
    size, _ = vault.snaps[image_id][f"backup.{one}.snap"]
    vault.snaps[image_id][f"backup.{one}.snap"] = size, "goog"
    restored = restore(client, one)
    if in_use:
        server, body = hypervisor.add_server("vm", PROJECT).id, {"volumeAttachment": {"volumeId": restored}}
        assert client.post(f"/v2.1/servers/{server}/os-volume_attachments", body).status_code == 200
    settle(world)
    assert status(client, restored) == ("in-use" if in_use else "error")
    [message] = client.at("3.5").get("/v3/messages").json["messages"]
    assert (message["resource_uuid"], "damaged" in message["user_message"]) == (restored, True)
    settle(world)
    assert len(client.at("3.5").get("/v3/messages").json["messages"]) == 1
    remove(client, one)
    settle(world)
    assert vault.bin == {}


# -- what a crash leaves


@pytest.mark.parametrize("at", range(2))
def test_a_restore_that_was_killed_is_finished(
    client: Client, cluster: FakeCluster, world: World, chain: tuple[str, list[str]], at: int
) -> None:
    dying(cluster, at)
    with pytest.raises(Killed):
        restore(client, chain[1][1])
    [volume] = [one["id"] for one in client.get("/v3/volumes").json["volumes"] if one["id"] != chain[0]]
    assert status(client, volume) == "creating"
    assert client.delete(f"/v3/backups/{chain[1][1]}").status_code == 400
    abandon(world)
    settle(world)
    assert (status(client, volume), read(cluster, volume), depth(cluster, volume)) == ("available", "two", 0)
    remove(client, chain[1][1])


@pytest.mark.parametrize("at", range(8))
def test_a_deletion_that_was_killed_is_finished(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, at: int
) -> None:
    source = client.volume()["id"]
    write(cluster, source, "one")
    one = backup(client, source)
    volume = restore(client, one)
    dying(vault, at)
    with pytest.raises(Killed):
        remove_for_good(client, world, one)
    abandon(world)
    settle(world)
    assert (client.get("/v3/backups").json["backups"], rows(world, models.Backup)) == ([], [])
    assert (vault.images(""), vault.bin, vault.objects) == (set(), {}, {})
    assert (status(client, volume), read(cluster, volume), depth(cluster, volume)) == ("available", "one", 0)


@pytest.mark.parametrize("moment", ["depth", "flatten", "verify"])
def test_one_that_was_killed_while_it_was_made_whole_is_made_whole(
    client: Client,
    cluster: FakeCluster,
    vault: FakeCluster,
    world: World,
    chain: tuple[str, list[str]],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = restore(client, chain[1][2])

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "verify":
            patch.setattr(vault, "get_object", die)
        else:
            patch.setattr(cluster, moment, die)
        with pytest.raises(Killed):
            reconcile.once(world)
    assert (status(client, volume), read(cluster, volume)) == ("available", "three")
    assert row(world, volume).restored_from == chain[1][2]
    abandon(world)
    settle(world)
    assert (status(client, volume), read(cluster, volume), depth(cluster, volume)) == ("available", "three", 0)
    assert (row(world, volume).restored_from, rows(world, models.Flatten)) == (None, [])


def test_of_two_backups_deleted_at_a_time_nothing_is_left(
    client: Client, vault: FakeCluster, world: World, chain: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = chain[1]
    remove(client, one)
    really = vault.remove_snapshot

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(vault, "remove_snapshot", really)
        remove(client, three)
        really(*arguments)

    monkeypatch.setattr(vault, "remove_snapshot", meanwhile)
    remove(client, two)
    settle(world)
    assert (vault.images(""), vault.bin, vault.objects, rows(world, models.Backup)) == (set(), {}, {}, [])
