# SPDX-License-Identifier: Apache-2.0
"""Backups over HTTP: full ones, increments, what is restored from them, who may do what when, and what a crash leaves."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import flask
import pytest
import sqlalchemy

from cinderlite import app as composition
from cinderlite import errors
from cinderlite.ceph.data import CHUNK_BYTES
from cinderlite.context import World
from cinderlite.core import backups, reconcile
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, _client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor


class Killed(BaseException):
    """The process ends here."""


def backup(client: Client, volume: str, **fields: Any) -> dict[str, Any]:
    """Make a backup and answer it as it is afterwards."""
    made = client.post("/v3/backups", {"backup": {"volume_id": volume, **fields}})
    assert made.status_code == 202, made.text
    return shown(client, made.json["backup"]["id"])


def shown(client: Client, backup_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.at("3.56").get(f"/v3/backups/{backup_id}").json["backup"]
    return found


def refused(client: Client, volume: str, **fields: Any) -> int:
    return int(client.post("/v3/backups", {"backup": {"volume_id": volume, **fields}}).status_code)


def restore(client: Client, backup_id: str, **fields: Any) -> Any:
    return client.post(f"/v3/backups/{backup_id}/restore", {"restore": fields})


def write(cluster: FakeCluster, volume: str, text: str, piece: int = 0) -> None:
    """Let a guest write."""
    with cluster.opened(f"volume-{volume}", write=True) as image:
        image.write(piece * CHUNK_BYTES, text.encode())


def read(cluster: FakeCluster, volume: str) -> list[str]:
    """What a guest reads of the first three pieces, without the zeros."""
    with cluster.opened(f"volume-{volume}") as image:
        return [image.read(piece * CHUNK_BYTES, CHUNK_BYTES).rstrip(b"\0").decode() for piece in range(3)]


def status(client: Client, volume: str) -> str:
    return str(client.get(f"/v3/volumes/{volume}").json["volume"]["status"])


def snaps(cluster: FakeCluster, volume: str) -> list[str]:
    return [one.name for one in cluster.snapshots(f"volume-{volume}")]


def set_status(client: Client, volume: str, to: str) -> None:
    assert client.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": to}}).status_code == 202


def test_a_backup_is_made_and_shown(client: Client, cluster: FakeCluster, vault: FakeCluster) -> None:
    volume = client.volume(size=2)["id"]
    write(cluster, volume, "one")
    write(cluster, volume, "three", piece=2)
    assert refused(client.at("3.42"), volume, metadata={"k": "v"}) == 400
    made = client.at("3.43").post(
        "/v3/backups", {"backup": {"volume_id": volume, "name": "a", "description": "b", "metadata": {"k": "v"}}}
    )
    assert made.status_code == 202
    assert made.json["backup"].keys() == {"id", "name", "links"}
    found = shown(client, made.json["backup"]["id"])
    assert found == {
        "id": found["id"],
        "name": "a",
        "description": "b",
        "links": found["links"],
        "status": "available",
        "size": 2,
        "object_count": 2,
        "availability_zone": "nova",
        "container": "backups",
        "created_at": found["created_at"],
        "updated_at": found["updated_at"],
        "fail_reason": None,
        "volume_id": volume,
        "is_incremental": False,
        "has_dependent_backups": False,
        "snapshot_id": None,
        "data_timestamp": found["data_timestamp"],
        "metadata": {"k": "v"},
    }
    assert status(client, volume) == "available"
    assert vault.images("") == {f"volume-{volume}.backup.{found['id']}"}


def test_fields_come_with_their_version(client: Client, admin: Client) -> None:
    one = f"/v3/backups/{backup(client, client.volume()['id'])['id']}"
    assert "metadata" not in client.at("3.42").get(one).json["backup"]
    assert "encryption_key_id" not in client.at("3.64").get(one).json["backup"]
    assert "os-backup-project-attr:project_id" not in admin.at("3.17").get(one).json["backup"]
    assert admin.at("3.18").get(one).json["backup"]["os-backup-project-attr:project_id"] == PROJECT
    assert "user_id" not in admin.at("3.55").get(one).json["backup"]
    assert admin.at("3.56").get(one).json["backup"]["user_id"] == "alice"
    assert "user_id" not in client.at("3.56").get(one).json["backup"]


def test_an_increment_stores_what_changed_and_stands_for_itself(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    write(cluster, volume, "two", piece=1)
    full = backup(client, volume)["id"]
    write(cluster, volume, "TWO", piece=1)
    first = backup(client, volume, incremental=True)
    write(cluster, volume, "\0\0\0", piece=0)
    second = backup(client, volume, incremental=True)["id"]
    assert first["is_incremental"]
    assert len(vault.images("")) == 1
    assert snaps(cluster, volume) == [f"backup.{second}.snap"]

    assert client.delete(f"/v3/backups/{full}").status_code == 202
    for which, expected in ((first["id"], ["one", "TWO", ""]), (second, ["", "TWO", ""])):
        made = restore(client, which)
        assert made.status_code == 202
        assert read(cluster, made.json["restore"]["volume_id"]) == expected
    for last in (first["id"], second):
        assert client.delete(f"/v3/backups/{last}").status_code == 202
    settle(world)
    assert (vault.images(""), vault.objects, vault.bin) == (set(), {}, {})
    assert snaps(cluster, volume) == []


def test_an_increment_is_right_without_the_common_snapshot(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    write(cluster, volume, "two", piece=1)
    full = backup(client, volume)["id"]
    cluster.remove_snapshot(f"volume-{volume}", f"backup.{full}.snap")
    write(cluster, volume, "\0\0\0")
    write(cluster, volume, "three", piece=2)
    made = restore(client, backup(client, volume, incremental=True)["id"]).json["restore"]["volume_id"]
    assert read(cluster, made) == ["", "two", "three"]


def test_an_increment_needs_something_to_be_one_to(client: Client) -> None:
    volume = client.volume()["id"]
    assert refused(client, volume, incremental=True) == 400
    backup(client, client.volume()["id"])
    assert refused(client, volume, incremental=True) == 400
    assert status(client, volume) == "available"


def test_an_increment_is_one_to_a_backup_of_the_same_project(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    elsewhere = admin.with_headers(X_Test_Project=OTHER)
    theirs = backup(elsewhere, volume)["id"]
    assert refused(client, volume, incremental=True) == 400
    mine = backup(client, volume)["id"]
    backup(elsewhere, volume, incremental=True)
    assert shown(elsewhere, theirs)["has_dependent_backups"]
    assert not shown(client, mine)["has_dependent_backups"]


def test_a_backup_of_a_snapshot_has_what_that_had(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "then")
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    write(cluster, volume, "now!")
    made = backup(client, volume, snapshot_id=snapshot)
    assert made["snapshot_id"] == snapshot
    assert made["data_timestamp"] == client.get(f"/v3/snapshots/{snapshot}").json["snapshot"]["created_at"]
    assert read(cluster, restore(client, made["id"]).json["restore"]["volume_id"])[0] == "then"
    later = backup(client, volume, incremental=True)
    assert read(cluster, restore(client, later["id"]).json["restore"]["volume_id"])[0] == "now!"
    assert client.get(f"/v3/snapshots/{snapshot}").json["snapshot"]["status"] == "available"

    other = client.volume()["id"]
    assert refused(client, other, snapshot_id=snapshot) == 400
    assert client.delete(f"/v3/snapshots/{snapshot}").status_code == 202
    assert client.delete(f"/v3/backups/{made['id']}").status_code == 202


def test_a_volume_in_use_needs_force(client: Client, hypervisor: FakeHypervisor) -> None:
    volume, server = client.volume()["id"], hypervisor.add_server("vm", PROJECT).id
    client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})
    assert refused(client, volume) == 400
    assert backup(client, volume, force=True)["status"] == "available"
    assert status(client, volume) == "in-use"


def test_what_cannot_be_backed_up_is_refused(client: Client, stranger: Client, reader: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    assert refused(stranger, volume) == 404
    assert refused(reader, volume) == 403
    assert refused(client, "not-an-id") == 400
    assert refused(client, volume, snapshot_id=models.new_id()) == 404
    assert refused(client, volume, incremental="perhaps") == 400
    assert refused(client.at("3.50"), volume, availability_zone="nova") == 400
    assert refused(client.at("3.51"), volume, availability_zone="the moon") == 400
    assert refused(client.at("3.51"), volume, availability_zone="nova") == 202
    set_status(admin, volume, "error")
    assert refused(client, volume, force=True) == 400
    assert len(client.get("/v3/backups").json["backups"]) == 1


@pytest.mark.parametrize("conf", [{"quota_backups": 1, "quota_backup_gigabytes": 2}], indirect=True)
def test_backups_are_counted(client: Client) -> None:
    small, large = client.volume()["id"], client.volume(size=3)["id"]
    refusal = client.post("/v3/backups", {"backup": {"volume_id": large}})
    assert (refusal.status_code, refusal.headers["Retry-After"]) == (413, "0")
    one = backup(client, small)["id"]
    assert refused(client, small) == 413
    assert status(client, small) == "available"
    assert client.delete(f"/v3/backups/{one}").status_code == 202
    backup(client, small)


def test_without_a_backup_pool_there_are_no_backups(world: World, conf: Any) -> None:
    application: flask.Flask = composition.create_app(conf, dataclasses.replace(world, backup_cluster=None))
    without = _client(application, PROJECT, "member,reader", "alice")
    assert refused(without, without.volume()["id"]) == 503
    assert without.get("/v3/backups").json == {"backups": []}


def test_a_backup_is_restored_over_a_volume(client: Client, admin: Client, cluster: FakeCluster) -> None:
    volume, larger, smaller = client.volume(size=2)["id"], client.volume(size=3)["id"], client.volume()["id"]
    write(cluster, volume, "good")
    one = backup(client, volume)["id"]
    write(cluster, volume, "bad!")
    write(cluster, volume, "more", piece=1)
    write(cluster, larger, "old", piece=2)
    for target in (volume, larger):
        answer = restore(client, one, volume_id=target)
        assert answer.status_code == 202
        assert answer.json["restore"] == {"backup_id": one, "volume_id": target, "volume_name": None}
        assert read(cluster, target) == ["good", "", ""]
        assert status(client, target) == "available"
    assert restore(client, one, volume_id=smaller).status_code == 400
    set_status(admin, volume, "error")
    assert restore(client, one, volume_id=volume).status_code == 400
    assert shown(client, one)["status"] == "available"


def test_a_backup_is_restored_into_a_new_volume(client: Client, cluster: FakeCluster, stranger: Client) -> None:
    volume = client.volume(name="data", metadata={"k": "v"})["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    told = restore(client, one).json["restore"]
    assert told["volume_name"] == f"restore_backup_{one}"
    made = client.get(f"/v3/volumes/{told['volume_id']}").json["volume"]
    assert (made["size"], made["status"], made["metadata"]) == (1, "available", {"k": "v"})
    assert restore(client, one, name="mine").json["restore"]["volume_name"] == "mine"
    assert restore(stranger, one).status_code == 404


def test_a_volume_is_made_from_a_backup(client: Client, cluster: FakeCluster, stranger: Client) -> None:
    volume = client.volume(size=2)["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)["id"]
    made = client.at("3.47").volume(size=3, backup_id=one)
    assert (made["status"], made["size"]) == ("available", 3)
    assert read(cluster, made["id"])[0] == "one"
    body = {"volume": {"size": 1, "backup_id": one}}
    assert client.at("3.47").post("/v3/volumes", body).status_code == 400
    body["volume"]["size"] = 2
    assert client.at("3.46").post("/v3/volumes", body).json["volume"]["size"] == 2
    assert stranger.at("3.47").post("/v3/volumes", body).status_code == 404
    assert len([name for name in cluster.images("") if read(cluster, name.removeprefix("volume-"))[0]]) == 2


def test_damage_is_noticed_before_it_is_restored(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "good")
    one = backup(client, volume)["id"]
    assert backups.verify(world, one) == 1
    [image_id] = vault.snaps
    size, _ = vault.snaps[image_id][f"backup.{one}.snap"]
    vault.snaps[image_id][f"backup.{one}.snap"] = size, "goog"
    with pytest.raises(Exception, match="damaged"):
        backups.verify(world, one)
    write(cluster, volume, "mine")
    assert restore(client, one, volume_id=volume).status_code == 202
    assert read(cluster, volume)[0] == "mine"
    assert status(client, volume) == "error_restoring"
    [message] = client.at("3.5").get("/v3/messages").json["messages"]
    assert (message["resource_uuid"], message["resource_type"]) == (one, "VOLUME_BACKUP")


def test_a_backup_of_another_project_does_not_exist(client: Client, stranger: Client, admin: Client) -> None:
    one = f"/v3/backups/{backup(client, client.volume()['id'])['id']}"
    assert stranger.get(one).status_code == 404
    assert stranger.delete(one).status_code == 404
    assert stranger.at("3.9").put(one, {"backup": {"name": "mine"}}).status_code == 404
    assert stranger.get("/v3/backups?all_tenants=1").json["backups"] == []
    assert client.get(f"{one}/export_record").status_code == 403
    assert len(admin.get("/v3/backups?all_tenants=1").json["backups"]) == 1


def test_a_backup_is_changed(client: Client) -> None:
    one = f"/v3/backups/{backup(client, client.volume()['id'])['id']}"
    assert client.at("3.8").put(one, {"backup": {"name": "b"}}).status_code == 404
    assert client.at("3.9").put(one, {"backup": {"name": "b"}}).json["backup"]["name"] == "b"
    assert client.at("3.9").put(one, {"backup": {}}).status_code == 400
    assert client.at("3.43").put(one, {"backup": {"metadata": {"k": "v"}}}).status_code == 200
    assert client.at("3.43").get(one).json["backup"]["metadata"] == {"k": "v"}


def test_lists_are_filtered_and_paged(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    backup(client.at("3.43"), volume, name="a", metadata={"k": "v"})
    backup(client, client.volume()["id"], name="b")

    def names(query: str, who: Client = client) -> list[str]:
        return [one["name"] for one in who.at("3.45").get(f"/v3/backups?{query}").json["backups"]]

    assert names(f"volume_id={volume}") == ["a"]
    assert names("status=error") == []
    # Not among the filters that Cinder lets members use unless it is configured so.
    assert names("metadata={'k':'v'}", admin) == ["a"]
    assert names("sort=name:asc") == ["a", "b"]
    assert names("sort=name:asc&limit=1") == ["a"]
    assert client.at("3.45").get("/v3/backups/detail?with_count=1&limit=1").json["count"] == 2
    assert client.at("3.31").get("/v3/backups?colour=red").status_code == 400


def test_status_is_set_by_hand_by_administrators(client: Client, admin: Client, vault: FakeCluster) -> None:
    one = f"/v3/backups/{backup(client, client.volume()['id'])['id']}"
    reset = {"os-reset_status": {"status": "error"}}
    assert client.post(f"{one}/action", reset).status_code == 403
    assert admin.post(f"{one}/action", {"os-reset_status": {"status": "great"}}).status_code == 400
    assert admin.post(f"{one}/action", {"os-reset_status": {"status": "ERROR"}}).status_code == 202
    assert client.get(one).json["backup"]["status"] == "error"
    assert client.post(f"{one}/restore", {"restore": {}}).status_code == 400
    assert client.post(f"{one}/action", {"os-force_delete": {}}).status_code == 403
    assert admin.post(f"{one}/action", {"os-force_delete": {}}).status_code == 202
    assert client.get(one).status_code == 404
    assert vault.images("") == set()


def test_the_snapshot_for_the_next_increment_is_nobody_elses(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    one = backup(client, volume)["id"]
    name = f"backup.{one}.snap"
    [found] = (
        admin.at("3.8").get("/v3/manageable_snapshots/detail?host=testhost@ceph%23ceph").json["manageable-snapshots"]
    )
    assert (found["reference"], found["safe_to_manage"]) == ({"source-name": name}, False)
    body = {"snapshot": {"volume_id": volume, "ref": {"source-name": name}}}
    assert admin.at("3.8").post("/v3/manageable_snapshots", body).status_code == 400


# -- records


def test_a_record_brings_a_lost_backup_back(client: Client, admin: Client, cluster: FakeCluster, world: World) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)["id"]
    record = admin.get(f"/v3/backups/{one}/export_record").json
    assert admin.post("/v3/backups/import_record", record).status_code == 400
    assert client.post("/v3/backups/import_record", record).status_code == 403
    with world.db.write() as session:  # the database is lost
        session.execute(sqlalchemy.delete(models.BackupMetadata))
        session.execute(sqlalchemy.delete(models.Backup))
    taken = admin.post("/v3/backups/import_record", record)
    assert taken.status_code == 201
    assert taken.json["backup"]["id"] == one
    assert shown(admin, one)["status"] == "available"
    assert read(cluster, restore(admin, one).json["restore"]["volume_id"])[0] == "one"
    assert backup(client, volume, incremental=True)["status"] == "available"


def test_deleting_leaves_what_only_a_record_knows(
    client: Client, admin: Client, world: World, vault: FakeCluster
) -> None:
    volume = client.volume()["id"]
    one, two = backup(client, volume)["id"], backup(client, volume, incremental=True)["id"]
    record = admin.get(f"/v3/backups/{one}/export_record").json
    with world.db.write() as session:  # of the two, the database has only the second
        session.execute(sqlalchemy.delete(models.Backup).where(models.Backup.id == one))
    assert client.delete(f"/v3/backups/{two}").status_code == 202
    assert admin.post("/v3/backups/import_record", record).status_code == 201
    assert shown(admin, one)["status"] == "available"
    assert admin.delete(f"/v3/backups/{one}").status_code == 202
    assert not vault.stored


def test_a_record_of_what_is_not_there_ends_in_error(
    client: Client, admin: Client, vault: FakeCluster, world: World
) -> None:
    one = backup(client, client.volume()["id"])["id"]
    record = admin.get(f"/v3/backups/{one}/export_record").json
    assert client.delete(f"/v3/backups/{one}").status_code == 202
    assert admin.post("/v3/backups/import_record", record).status_code == 400
    settle(world)
    assert admin.post("/v3/backups/import_record", record).status_code == 201
    found = shown(admin, one)
    assert found["status"] == "error"
    assert "not in the backup pool" in found["fail_reason"]
    assert admin.delete(f"/v3/backups/{one}").status_code == 202
    assert vault.images("") == set()


def test_a_record_under_another_id_shares_what_is_stored(
    client: Client, admin: Client, cluster: FakeCluster, vault: FakeCluster
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)["id"]
    told = admin.get(f"/v3/backups/{one}/export_record").json["backup-record"]
    record = json.loads(base64.b64decode(told["backup_url"]))
    record["id"] = models.new_id()
    told["backup_url"] = base64.b64encode(json.dumps(record).encode()).decode()
    taken = admin.post("/v3/backups/import_record", {"backup-record": told}).json["backup"]["id"]
    assert (taken, shown(admin, taken)["status"]) == (record["id"], "available")
    assert client.delete(f"/v3/backups/{one}").status_code == 202
    assert shown(admin, taken)["status"] == "available"
    assert read(cluster, restore(admin, taken).json["restore"]["volume_id"])[0] == "one"
    write(cluster, volume, "two")
    two = backup(admin, volume, incremental=True)["id"]
    assert read(cluster, restore(admin, two).json["restore"]["volume_id"])[0] == "two"
    assert snaps(cluster, volume) == [f"backup.{two}.snap"]
    for each in (taken, two):
        assert admin.delete(f"/v3/backups/{each}").status_code == 202
    assert vault.images("") == set()
    assert snaps(cluster, volume) == []


@pytest.mark.parametrize(
    "forged",
    [
        {"id": "x"},
        {"size": 0},
        {"size": True},
        {"more": "keys"},
        {"data_timestamp": "yesterday"},
        {"chain": "volume-of-somebody-else"},
        {"snap": "snapshot-of-somebody-else"},
        {"stored_as": "x"},
        {"stored_as": "bbbbbbbb-2222-4222-8222-222222222222"},
    ],
)
def test_a_forged_record_is_refused(client: Client, admin: Client, forged: dict[str, Any]) -> None:
    one = backup(client, client.volume()["id"])["id"]
    told = admin.get(f"/v3/backups/{one}/export_record").json["backup-record"]
    record = json.loads(base64.b64decode(told["backup_url"]))
    record["id"] = models.new_id()
    for key, value in forged.items():
        (record["details"] if key in record["details"] else record)[key] = value
    url = base64.b64encode(json.dumps(record).encode()).decode()
    body = {"backup-record": {"backup_service": told["backup_service"], "backup_url": url}}
    assert admin.post("/v3/backups/import_record", body).status_code == 400
    assert [found["id"] for found in admin.get("/v3/backups").json["backups"]] == [one]


@pytest.mark.parametrize("url", ["", "%%%", "aGVsbG8=", "W10=", "bnVsbA=="])
def test_what_is_no_record_is_refused(admin: Client, url: str) -> None:
    body = {"backup-record": {"backup_service": "cinder.backup.drivers.cinderlite", "backup_url": url}}
    assert admin.post("/v3/backups/import_record", body).status_code == 400
    body["backup-record"]["backup_service"] = "cinder.backup.drivers.swift.SwiftBackupDriver"
    assert admin.post("/v3/backups/import_record", body).status_code == 400


# -- what a crash leaves


def abandon(world: World) -> None:
    """Let this process's leases lapse, as a dead one's do."""
    with world.db.write() as session:
        for machine in reconcile.MACHINES:
            session.execute(sqlalchemy.update(machine.model).values(lease_owner=None, lease_until=0.0))


@pytest.mark.parametrize("moment", ["create", "put_object", "snapshot"])
def test_a_backup_that_was_broken_off_is_finished(
    client: Client, cluster: FakeCluster, world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(world.backup_cluster, moment, die)
        with pytest.raises(Killed):
            client.post("/v3/backups", {"backup": {"volume_id": volume}})
    assert status(client, volume) == "backing-up"
    write(cluster, volume, "two")
    abandon(world)
    settle(world)
    [one] = client.get("/v3/backups/detail").json["backups"]
    assert (one["status"], status(client, volume)) == ("available", "available")
    assert read(cluster, restore(client, one["id"]).json["restore"]["volume_id"])[0] == "one"


def test_an_increment_after_a_broken_off_one_is_right(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    backup(client, volume)
    write(cluster, volume, "ONE")

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(vault, "put_object", die)
        with pytest.raises(Killed):
            client.post("/v3/backups", {"backup": {"volume_id": volume, "incremental": True}})
    [broken] = [one["id"] for one in client.get("/v3/backups/detail?status=creating").json["backups"]]
    assert client.delete(f"/v3/backups/{broken}").status_code == 202
    abandon(world)
    settle(world)
    write(cluster, volume, "one")
    made = backup(client, volume, incremental=True)["id"]
    assert read(cluster, restore(client, made).json["restore"]["volume_id"])[0] == "one"


def test_deleting_gives_up_a_backup_that_is_being_made(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(vault, "snapshot", die)
        with pytest.raises(Killed):
            client.post("/v3/backups", {"backup": {"volume_id": volume}})
    [one] = [found["id"] for found in client.get("/v3/backups").json["backups"]]
    assert client.delete(f"/v3/backups/{one}").status_code == 202
    assert shown(client, one)["status"] == "deleting"
    abandon(world)
    settle(world)
    assert client.get("/v3/backups").json["backups"] == []
    assert (status(client, volume), snaps(cluster, volume)) == ("available", [])
    assert (vault.images(""), vault.objects, vault.bin) == (set(), {}, {})


def test_a_broken_off_restore_is_finished(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "good")
    one = backup(client, volume)["id"]
    write(cluster, volume, "bad!")

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(vault, "get_object", die)
        with pytest.raises(Killed):
            restore(client, one, volume_id=volume)
    assert (status(client, volume), shown(client, one)["status"]) == ("restoring-backup", "restoring")
    assert client.delete(f"/v3/backups/{one}").status_code == 400
    abandon(world)
    settle(world)
    assert (status(client, volume), shown(client, one)["status"]) == ("available", "available")
    assert read(cluster, volume)[0] == "good"


def test_a_killed_process_that_read_a_backup_only_delays_its_end(
    client: Client, vault: FakeCluster, world: World
) -> None:
    volume = client.volume()["id"]
    one = backup(client, volume)["id"]
    vault.watchers[f"volume-{volume}.backup.{one}"] = ["192.0.2.9:0/1"]
    assert client.delete(f"/v3/backups/{one}").status_code == 202
    assert shown(client, one)["status"] == "deleting"
    vault.watchers.clear()
    abandon(world)
    settle(world)
    assert client.get(f"/v3/backups/{one}").status_code == 404
    assert vault.images("") == set()


def test_a_volumes_busy_image_is_tried_again(
    client: Client, cluster: FakeCluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its lock is one of a process that was just killed."""
    volume = client.volume()["id"]
    first = backup(client, volume)["id"]

    def busy(name: str, _snap: str) -> None:
        raise errors.ImageBusy(name, "another client")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "snapshot", busy)
        patch.setattr(cluster, "remove_snapshot", busy)
        second = client.post("/v3/backups", {"backup": {"volume_id": volume, "incremental": True}}).json["backup"]["id"]
        assert shown(client, second)["status"] == "creating"
    settle(world)
    assert shown(client, second)["status"] == "available"
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "remove_snapshot", busy)
        for one in (second, first):
            assert client.delete(f"/v3/backups/{one}").status_code == 202
            assert shown(client, one)["status"] == "deleting"
    settle(world)
    assert client.get("/v3/backups").json["backups"] == []
    assert cluster.snapshots(f"volume-{volume}") == []


def test_deleting_a_volume_leaves_its_backups(
    client: Client, cluster: FakeCluster, vault: FakeCluster, world: World
) -> None:
    volume = client.volume()["id"]
    write(cluster, volume, "one")
    one = backup(client, volume)["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert (cluster.images(""), cluster.bin) == (set(), {})
    assert shown(client, one)["status"] == "available"
    assert client.delete(f"/v3/backups/{one}").status_code == 202
    assert vault.images("") == set()
