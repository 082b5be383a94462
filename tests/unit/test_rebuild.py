# SPDX-License-Identifier: Apache-2.0
"""A database that was thrown away and built anew: what the API says before and after, and what must not come back."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from backends.databases import Databases
from cinderlite import errors
from cinderlite.ceph.namespaces import of_project
from cinderlite.context import World
from cinderlite.core import reconcile, records, undelete
from cinderlite.core.progress import silent
from cinderlite.core.rebuild import Rebuilt, rebuild
from cinderlite.core.recorder import Recorder
from cinderlite.core.types import ensure_default
from cinderlite.db import models
from cinderlite.keys.master import MasterKey
from conftest import OTHER, PROJECT, Client, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

LUKS = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
TWO = {"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "second"}
KEPT = {"deleted_volume_retention": 3600}


def record(world: World) -> None:
    """Have all that there is recorded, as the service does it within a second."""
    writer = Recorder(world)
    while writer.once():
        pass
    writer.let_go()


def lose(world: World, databases: Databases) -> None:
    """The database is gone, and there is an empty one."""
    databases.fresh()


def again(world: World, databases: Databases, **options: Any) -> Rebuilt:
    lose(world, databases)
    return rebuild(world, silent, **options)


def subjects(done: Rebuilt) -> set[tuple[str, str]]:
    return {(one.kind, one.subject) for one in done.findings}


def answers(*clients: Client) -> list[Any]:
    """What the API says to each."""
    paths = [
        "volumes/detail", "snapshots/detail", "backups/detail", "groups/detail", "group_snapshots/detail",
        "attachments/detail", "types?is_public=None", "group_types", "os-quota-sets/{0}?usage=True",
        "os-quota-sets/{0}/defaults", "default-types", "qos-specs", "limits",
    ]  # fmt: skip
    found = []
    for client in clients:
        for path in paths:
            answer = client.at("3.71").get(f"/v3/{path.format(client.headers['X-Test-Project'])}")
            if answer.status_code != 403:
                assert answer.status_code == 200, answer.text
                found.append((path, answer.json))
    return found


def snapshot(client: Client, volume_id: str, **fields: Any) -> str:
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume_id, "force": True, **fields}})
    return str(made.json["snapshot"]["id"])


def plenty(client: Client, stranger: Client, admin: Client, world: World, hypervisor: FakeHypervisor) -> None:
    """Something of everything."""
    gold = admin.post("/v3/types", {"volume_type": {"name": "gold", "extra_specs": {"my:note": "x"}}})
    kind = gold.json["volume_type"]["id"]
    admin.post(f"/v3/types/{kind}/encryption", {"encryption": LUKS})
    specs = {"name": "slow", "consumer": "front-end", "read_iops_sec": "100"}
    qos = admin.post("/v3/qos-specs", {"qos_specs": specs}).json["qos_specs"]["id"]
    admin.get(f"/v3/qos-specs/{qos}/associate?vol_type_id={kind}")
    admin.post("/v3/types", {"volume_type": {"name": "secret", "os-volume-type-access:is_public": False}})
    admin.put(f"/v3/os-quota-sets/{OTHER}", {"quota_set": {"volumes": 77, "gigabytes_gold": 5}})
    admin.at("3.62").put(f"/v3/default-types/{OTHER}", {"default_type": {"volume_type": "gold"}})
    plain = client.volume(name="plain", description="数", metadata={"a": "b"}, size=2)
    client.post(f"/v3/volumes/{plain['id']}/action", {"os-set_bootable": {"bootable": True}})
    image = {"os-set_image_metadata": {"metadata": {"os": "linux"}}}
    client.post(f"/v3/volumes/{plain['id']}/action", image)
    monday = snapshot(client, plain["id"], name="monday", metadata={"x": "y"})
    client.volume(snapshot_id=monday, name="clone", size=2)
    stranger.volume(volume_type="gold", name="other's")
    admin.post("/v3/types", {"volume_type": {"name": "nowhere", "extra_specs": {"volume_backend_name": "x"}}})
    assert client.volume(volume_type="nowhere")["status"] == "error"
    client.post(f"/v3/volumes/{plain['id']}/action", {"os-extend": {"new_size": 3}})
    for more in ({"name": "full", "metadata": {"m": "n"}}, {"incremental": True}):
        body = {"backup": {"volume_id": plain["id"], **more}}
        assert client.at("3.43").post("/v3/backups", body).status_code == 202
        settle(world)
    body = {"group_type": {"name": "set", "group_specs": {"consistent_group_snapshot_enabled": "<is> True"}}}
    group_type = admin.at("3.11").post("/v3/group_types", body).json["group_type"]["id"]
    body = {"group": {"group_type": group_type, "volume_types": ["__DEFAULT__"], "name": "both"}}
    group = client.at("3.13").post("/v3/groups", body).json["group"]["id"]
    settle(world)
    for name in ("one", "two"):
        at_group = client.at("3.13")
        body = {"volume": {"size": 1, "name": name, "group_id": group, "volume_type": "__DEFAULT__"}}
        assert at_group.post("/v3/volumes", body).status_code == 202
    body = {"group_snapshot": {"group_id": group, "name": "moment"}}
    assert client.at("3.14").post("/v3/group_snapshots", body).status_code == 202
    settle(world)
    server = hypervisor.add_server("vm1", PROJECT)
    held = client.volume(name="held")
    url = f"/v2.1/servers/{server.id}/os-volume_attachments"
    assert client.post(url, {"volumeAttachment": {"volumeId": held["id"]}}).status_code == 200
    reserved = client.volume(name="reserved")
    body = {"attachment": {"volume_uuid": reserved["id"], "instance_uuid": models.new_id()}}
    assert client.at("3.27").post("/v3/attachments", body).status_code == 200
    settle(world)


def test_the_api_says_the_same(
    client: Client, stranger: Client, admin: Client, world: World, databases: Databases, hypervisor: FakeHypervisor
) -> None:
    plenty(client, stranger, admin, world, hypervisor)
    record(world)
    before = answers(client, stranger, admin)
    done = again(world, databases)
    assert answers(client, stranger, admin) == before
    assert done.findings == []
    # What is there can be worked with, and what guests hold is left to them.
    settle(world)
    assert answers(client, stranger, admin) == before
    [other] = stranger.get("/v3/volumes").json["volumes"]
    clone = stranger.volume(source_volid=other["id"], volume_type="gold")
    assert clone["status"] == "available"
    # The database is the one that it was: its records and its catalogue are written over.
    record(world)
    assert len(cluster_of(world).entries(records.CATALOGUE)) == 1
    done = again(world, databases)
    assert done.findings == []
    assert stranger.get(f"/v3/volumes/{clone['id']}").status_code == 200


def test_only_into_an_empty_database(client: Client, world: World, databases: Databases) -> None:
    first = client.volume(name="first")
    record(world)
    with pytest.raises(errors.Conflict, match="it has 1 volumes"):
        rebuild(world, silent)
    lose(world, databases)
    ensure_default(world)
    second = client.volume(name="second")
    done = rebuild(world, silent, add=True)
    assert done.made["volumes"] == 1
    names = {one["id"]: one["name"] for one in client.get("/v3/volumes").json["volumes"]}
    assert names == {first["id"]: "first", second["id"]: "second"}
    # What is there is left as it is, also the type of the same name.
    client.put(f"/v3/volumes/{first['id']}", {"volume": {"name": "changed"}})
    assert sum(rebuild(world, silent, add=True).made.values()) == 0
    assert client.get(f"/v3/volumes/{first['id']}").json["volume"]["name"] == "changed"
    assert client.get(f"/v3/volumes/{first['id']}").json["volume"]["volume_type"] == "__DEFAULT__"


def test_what_was_attached_after_a_dump_that_was_put_back(
    client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    """The volume is in the database, its attachment is in the guest and in Ceph."""
    volume, server = client.volume()["id"], hypervisor.add_server("vm", PROJECT).id
    path = f"/v2.1/servers/{server}/os-volume_attachments"
    assert client.post(path, {"volumeAttachment": {"volumeId": volume}}).status_code == 200
    record(world)
    with world.db.write() as session:
        session.execute(delete(models.Attachment))
        session.execute(update(models.Volume).values(status="available"))
    assert rebuild(world, silent, add=True).made["attachments"] == 1
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    assert client.delete(f"{path}/{volume}").status_code == 202
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_what_went_to_another_server_after_a_dump_that_was_put_back_is_not_plugged_into_both(
    client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    volume = client.volume()["id"]
    old, new = (hypervisor.guests[hypervisor.add_server(name, PROJECT).id] for name in ("old", "new"))
    old.address, new.address = "192.0.2.1:0/1", "192.0.2.2:0/2"
    path = f"/v2.1/servers/{new.server.id}/os-volume_attachments"
    assert client.post(path, {"volumeAttachment": {"volumeId": volume}}).status_code == 200
    record(world)
    with world.db.write() as session:
        then = session.scalars(select(models.Attachment)).one()
        kept = {name: getattr(then, name) for name in ("volume_id", "project_id", "host", "mode", "status")}
        session.execute(delete(models.Attachment))
        session.add(models.Attachment(**kept, server_id=old.server.id))
    assert rebuild(world, silent, add=True).made["attachments"] == 1
    settle(world)
    assert (set(old.held), set(new.held)) == (set(), {volume})


def test_a_dry_run_makes_nothing(client: Client, world: World, databases: Databases) -> None:
    volume = client.volume()
    record(world)
    done = again(world, databases, dry_run=True)
    assert done.made["volumes"] == 1
    assert client.get("/v3/volumes").json["volumes"] == []
    rebuild(world, silent)
    assert client.get(f"/v3/volumes/{volume['id']}").status_code == 200


def test_an_empty_service_that_was_started_first_spoils_nothing(
    admin: Client, client: Client, world: World, databases: Databases
) -> None:
    admin.post("/v3/types", {"volume_type": {"name": "gold"}})
    volume = client.volume(volume_type="gold")
    kinds = admin.get("/v3/types").json
    record(world)
    lose(world, databases)
    ensure_default(world)
    record(world)
    assert len(cluster_of(world).entries(records.CATALOGUE)) == 2
    done = rebuild(world, silent)
    assert admin.get("/v3/types").json == kinds
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["volume_type"] == "gold"
    assert [one.kind for one in done.findings] == ["catalogue"]


def test_without_a_catalogue_types_have_their_names(
    admin: Client, client: Client, world: World, databases: Databases, cluster: FakeCluster, vault: FakeCluster
) -> None:
    admin.post("/v3/types", {"volume_type": {"name": "gold"}})
    volume = client.volume(volume_type="gold")
    record(world)
    del cluster.omaps[records.CATALOGUE], vault.omaps[records.CATALOGUE]
    done = again(world, databases)
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["volume_type"] == "gold"
    assert [one.kind for one in done.findings] == ["catalogue"]


def test_ceph_says_what_is_true(client: Client, world: World, databases: Databases, cluster: FakeCluster) -> None:
    bigger, lost, thrown_away = client.volume(), client.volume(), client.volume()
    taken = snapshot(client, bigger["id"])
    record(world)
    cluster.grow(f"volume-{bigger['id']}", 5 * 2**30)
    cluster.remove_snapshot(f"volume-{bigger['id']}", f"snapshot-{taken}")
    other = f"snapshot-{models.new_id()}"
    cluster.snapshot(f"volume-{bigger['id']}", other)
    image_id = cluster.trash(f"volume-{lost['id']}")
    assert image_id is not None
    cluster.purge(image_id)
    cluster.trash(f"volume-{thrown_away['id']}")
    stray = f"volume-{models.new_id()}"
    cluster.create(stray, 2**30)
    cluster.create("not-ours", 2**30)
    done = again(world, databases)
    found = client.get("/v3/volumes/detail").json["volumes"]
    assert [(one["id"], one["size"]) for one in found] == [(bigger["id"], 5)]
    assert client.get("/v3/snapshots").json["snapshots"] == []
    assert subjects(done) == {
        ("missing-image", f"volume-{lost['id']}"), ("trash", f"volume-{thrown_away['id']}"),
        ("unmanaged-image", stray), ("missing-snapshot", f"volume-{bigger['id']}@snapshot-{taken}"),
        ("unmanaged-snapshot", f"volume-{bigger['id']}@{other}"),
    }  # fmt: skip
    assert {stray, "not-ours"} < cluster.stored.keys()


def test_what_changed_just_before_is_as_it_was_written(client: Client, world: World, databases: Databases) -> None:
    renamed, deleted = client.volume(name="before"), client.volume()
    record(world)
    client.put(f"/v3/volumes/{renamed['id']}", {"volume": {"name": "after"}})
    client.delete(f"/v3/volumes/{deleted['id']}")
    unwritten = client.volume()
    done = again(world, databases)
    assert [one["name"] for one in client.get("/v3/volumes").json["volumes"]] == ["before"]
    assert ("unmanaged-image", f"volume-{unwritten['id']}") in subjects(done)


@pytest.mark.parametrize("conf", [TWO], indirect=True)
@pytest.mark.parametrize("written", [True, False])
def test_a_volume_that_was_moved(
    admin: Client, client: Client, world: World, databases: Databases, written: bool
) -> None:
    cluster_of(world).free_bytes *= 2
    volume = client.volume()
    snapshot(client, volume["id"])
    record(world)
    body = {"os-migrate_volume": {"host": "testhost@fast#fast"}}
    assert admin.post(f"/v3/volumes/{volume['id']}/action", body).status_code == 202
    settle(world)
    if written:
        record(world)
    done = again(world, databases)
    [found] = admin.get("/v3/volumes/detail").json["volumes"]
    assert (found["os-vol-host-attr:host"], done.findings) == ("testhost@fast#fast", [])
    assert len(client.get("/v3/snapshots").json["snapshots"]) == 1
    record(world)
    held = [key for name in records.objects() for key in cluster_of(world).entries(name)]
    assert held == []


@pytest.mark.parametrize("conf", [TWO], indirect=True)
def test_a_move_under_way_is_left_alone(client: Client, world: World, databases: Databases) -> None:
    cluster_of(world).free_bytes *= 2
    volume = client.volume()
    record(world)
    image = cluster_of(world).stored.pop(f"volume-{volume['id']}")
    cluster_of(world, "fast").stored[f"volume-{volume['id']}"] = image
    cluster_of(world).migrations[f"volume-{volume['id']}"] = "prepared"
    done = again(world, databases)
    assert client.get("/v3/volumes").json["volumes"] == []
    assert ("migration", f"volume-{volume['id']}") in subjects(done)


@pytest.mark.parametrize("conf", [TWO], indirect=True)
def test_a_copy_under_way_is_told_of(client: Client, admin: Client, world: World, databases: Databases) -> None:
    cluster_of(world).free_bytes *= 2
    volume = client.volume()
    record(world)
    cluster_of(world, "fast").create(f"volume-{volume['id']}", 2**30)
    done = again(world, databases)
    [found] = admin.get("/v3/volumes/detail").json["volumes"]
    assert found["os-vol-host-attr:host"] == "testhost@ceph#ceph"
    assert subjects(done) == {("two-images", f"volume-{volume['id']}")}


def test_a_back_end_that_is_down(client: Client, world: World, databases: Databases, vault: FakeCluster) -> None:
    client.volume()
    record(world)
    lose(world, databases)
    vault.down = True
    with pytest.raises(errors.CephUnavailable):
        rebuild(world, silent)
    vault.down = False
    assert rebuild(world, silent).made["volumes"] == 1


def test_what_was_under_way_has_failed(client: Client, world: World, databases: Databases) -> None:
    volume = client.volume()
    taken = snapshot(client, volume["id"])
    with world.db.write() as session:
        intent = {"verb": "revert", "request_id": "x", "snap": f"snapshot-{taken}"}
        session.execute(update(models.Volume).values(status="reverting", busy=1, intent=intent))
        session.execute(update(models.Snapshot).values(status="restoring", previous_status="available"))
    record(world)
    again(world, databases)
    settle(world)
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["status"] == "error"
    assert client.get(f"/v3/snapshots/{taken}").json["snapshot"]["status"] == "available"


@pytest.mark.parametrize("conf", [KEPT], indirect=True)
def test_deleted_volumes_are_as_deleted_as_before(
    client: Client, world: World, databases: Databases, cluster: FakeCluster
) -> None:
    first, second = client.volume(name="first"), client.volume(name="second")
    taken = snapshot(client, first["id"])
    for one in (first, second):
        assert client.delete(f"/v3/volumes/{one['id']}?cascade=true").status_code == 202
    record(world)
    again(world, databases)
    assert client.get("/v3/volumes").json["volumes"] == []
    assert {one.id for one in undelete.listed(world)} == {first["id"], second["id"]}
    undelete.undelete(world, first["id"])
    assert client.get(f"/v3/snapshots/{taken}").json["snapshot"]["status"] == "available"
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.deleted).values(purge_at=time.time() - 1))
    reconcile.once(world)
    assert list(cluster.stored) == [f"volume-{first['id']}"]
    assert cluster.bin == {}


@pytest.mark.parametrize("conf", [{"snapshots_outlive_volumes": True}], indirect=True)
@pytest.mark.parametrize("written", [True, False])
def test_snapshots_that_outlived_their_volume(
    client: Client, world: World, databases: Databases, cluster: FakeCluster, written: bool
) -> None:
    volume = client.volume()
    taken = snapshot(client, volume["id"])
    record(world)
    assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 202
    if written:
        settle(world)
        record(world)
        assert again(world, databases).findings == []
    else:  # So the volume is there as it was, since all of it is.
        again(world, databases)
        assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 202
        settle(world)
    assert client.get("/v3/volumes").json["volumes"] == []
    clone = client.volume(snapshot_id=taken)
    assert clone["status"] == "available"
    client.delete(f"/v3/volumes/{clone['id']}")
    assert client.delete(f"/v3/snapshots/{taken}").status_code == 202
    settle(world)
    assert (cluster.stored, cluster.bin) == ({}, {})


def test_the_purge_of_a_backup_that_waits_goes_on(
    client: Client, world: World, databases: Databases, cluster: FakeCluster, vault: FakeCluster
) -> None:
    volume = client.volume()
    backup = client.post("/v3/backups", {"backup": {"volume_id": volume["id"]}}).json["backup"]["id"]
    settle(world)
    restored = client.post(f"/v3/backups/{backup}/restore", {"restore": {}}).json["restore"]["volume_id"]
    clone = client.volume(source_volid=restored)
    client.delete(f"/v3/volumes/{restored}")
    assert client.delete(f"/v3/backups/{backup}").status_code == 202
    settle(world)
    record(world)
    assert vault.bin
    assert again(world, databases).findings == []
    assert client.get("/v3/backups").json["backups"] == []
    assert vault.bin
    client.delete(f"/v3/volumes/{clone['id']}")
    settle(world)
    assert (vault.bin, cluster.bin) == ({}, {})


def test_a_purge_that_waits_goes_on(client: Client, world: World, databases: Databases, cluster: FakeCluster) -> None:
    parent = client.volume()
    clone = client.volume(source_volid=parent["id"])
    client.delete(f"/v3/volumes/{parent['id']}")
    settle(world)
    record(world)
    again(world, databases)
    assert [one["id"] for one in client.get("/v3/volumes").json["volumes"]] == [clone["id"]]
    client.delete(f"/v3/volumes/{clone['id']}")
    settle(world)
    assert cluster.bin == {}


def test_keys_come_back_with_their_volumes(admin: Client, client: Client, world: World, databases: Databases) -> None:
    kind = admin.post("/v3/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    admin.post(f"/v3/types/{kind}/encryption", {"encryption": LUKS})
    volume = client.volume(volume_type="gold")
    client.post("/v3/backups", {"backup": {"volume_id": volume["id"]}})
    settle(world)
    with world.db.read() as session:
        ids = session.scalars(select(models.EncryptionKey.id)).all()
    assert world.keys is not None
    secrets = {one: world.keys.secret(one) for one in ids}
    record(world)
    done = again(world, databases)
    assert {one: world.keys.secret(one) for one in ids} == secrets
    assert (len(ids), done.findings) == (2, [])
    # With another key file they are there, and open nothing.
    world.keys._master = MasterKey([bytes(32)])  # type: ignore[attr-defined]
    done = again(world, databases)
    assert {one.kind for one in done.findings} == {"key"}


def test_a_forged_record_gives_nobody_anything(
    client: Client, stranger: Client, world: World, databases: Databases, cluster: FakeCluster
) -> None:
    volume = client.volume()
    record(world)
    entries = cluster.omaps[records.object_of(volume["id"])]
    [(key, text)] = entries.items()
    entries[key] = text.replace(PROJECT.encode(), OTHER.encode())
    done = again(world, databases)
    assert stranger.get("/v3/volumes").json["volumes"] == client.get("/v3/volumes").json["volumes"] == []
    assert ("record", key) in subjects(done)
    assert ("unmanaged-image", f"volume-{volume['id']}") in subjects(done)
    # A purge of something else is not begun either.
    assert again(world, databases, unsigned=True).made["volumes"] == 1
    assert len(stranger.get("/v3/volumes").json["volumes"]) == 1


def test_a_record_cannot_have_another_image_removed(
    client: Client, world: World, databases: Databases, cluster: FakeCluster
) -> None:
    volume, kept = client.volume(), client.volume()
    client.delete(f"/v3/volumes/{volume['id']}")
    settle(world)
    other = cluster.trash(f"volume-{kept['id']}")
    with world.db.write() as session:
        intent = {"verb": "purge", "request_id": "x", "image_id": other}
        session.execute(update(models.Volume).where(models.Volume.id == volume["id"]).values(busy=1, intent=intent))
    record(world)
    again(world, databases)
    settle(world)
    assert list(cluster.bin) == [other]


@pytest.mark.parametrize("conf", [{"ceph__rbd_namespace_per_project": True}], indirect=True)
def test_images_are_where_their_owners_are(
    client: Client, stranger: Client, world: World, databases: Databases, cluster: FakeCluster
) -> None:
    kept, lost = client.volume(), client.volume()
    other = stranger.volume()
    record(world)
    mine, theirs = (cluster.within(of_project(one)) for one in (PROJECT, OTHER))
    # Who may write to a namespace makes an image there that is called like somebody else's.
    theirs.create(f"volume-{kept['id']}", 7 * 2**30)
    theirs.create(f"volume-{lost['id']}", 7 * 2**30)
    image_id = mine.trash(f"volume-{lost['id']}")
    assert image_id is not None
    mine.purge(image_id)
    done = again(world, databases)
    assert [(one["id"], one["size"]) for one in client.get("/v3/volumes/detail").json["volumes"]] == [(kept["id"], 1)]
    assert [one["id"] for one in stranger.get("/v3/volumes").json["volumes"]] == [other["id"]]
    assert ("missing-image", f"volume-{lost['id']}") in subjects(done)
    assert client.delete(f"/v3/volumes/{kept['id']}").status_code == 202
    settle(world)
    assert (mine.images(""), mine.trashed()) == (set(), [])


def test_guests_know_what_they_hold(
    client: Client, world: World, databases: Databases, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm1", PROJECT)
    url = f"/v2.1/servers/{server.id}/os-volume_attachments"
    plugged, unplugged, known = client.volume(), client.volume(), client.volume()
    for one in (unplugged, known):
        client.post(url, {"volumeAttachment": {"volumeId": one["id"]}})
    [before] = [one for one in client.get(url).json["volumeAttachments"] if one["volumeId"] == known["id"]]
    record(world)
    client.post(url, {"volumeAttachment": {"volumeId": plugged["id"]}})
    client.delete(f"{url}/{unplugged['id']}")
    again(world, databases)
    settle(world)
    found = {one["volumeId"]: one for one in client.get(url).json["volumeAttachments"]}
    assert found.keys() == {plugged["id"], known["id"]}
    assert found[known["id"]] == before
    assert found[plugged["id"]]["device"].startswith("/dev/")
    status = {one["id"]: one["status"] for one in client.get("/v3/volumes/detail").json["volumes"]}
    assert status == {plugged["id"]: "in-use", unplugged["id"]: "available", known["id"]: "in-use"}


def test_a_guest_that_cannot_be_asked_keeps_its_disks(
    client: Client, world: World, databases: Databases, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm1", PROJECT)
    volume = client.volume()
    url = f"/v2.1/servers/{server.id}/os-volume_attachments"
    client.post(url, {"volumeAttachment": {"volumeId": volume["id"]}})
    record(world)
    hypervisor.guests[server.id].silent = True
    again(world, databases)
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["status"] == "in-use"


def test_backups_without_data_do_not_come_back(
    client: Client, world: World, databases: Databases, vault: FakeCluster
) -> None:
    volume = client.volume()
    backup = client.post("/v3/backups", {"backup": {"volume_id": volume["id"]}}).json["backup"]["id"]
    settle(world)
    record(world)
    [chain] = vault.images("")
    vault.remove_snapshot(chain, f"backup.{backup}.snap")
    done = again(world, databases)
    assert client.get("/v3/backups").json["backups"] == []
    assert subjects(done) == {("missing-backup", backup)}
