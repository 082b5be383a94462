# SPDX-License-Identifier: Apache-2.0
"""Retyping volumes and moving them between pools."""

from __future__ import annotations

from typing import Any

import pytest

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import services
from cinderlite.db import models
from conftest import PROJECT, Client, cluster_of, settle
from fakes_hypervisor import FakeHypervisor

FAST = "testhost@fast#fast"
TWO = {"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}
two = pytest.mark.parametrize("conf", [TWO], indirect=True)


def make_type(world: World, name: str, **specs: str) -> None:
    with world.db.write() as session:
        rows = [models.ExtraSpec(key=key, value=value) for key, value in specs.items()]
        session.add(models.VolumeType(name=name, extra_spec_rows=rows))


def act(client: Client, volume: str, action: str, **body: Any) -> Any:
    return client.post(f"/v3/volumes/{volume}/action", {action: body})


def test_a_type_is_changed(client: Client, world: World) -> None:
    make_type(world, "gold")
    volume = client.volume()["id"]
    assert act(client, volume, "os-retype", new_type="gold").status_code == 202
    found = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["volume_type"], found["status"]) == ("gold", "available")
    assert act(client, volume, "os-retype", new_type="gold").status_code == 400
    assert act(client, volume, "os-retype", new_type="silver").status_code == 404
    assert act(client, volume, "os-retype", new_type="gold", migration_policy="always").status_code == 400
    assert act(client, volume, "os-retype", new_type="gold", migration_policy=None).status_code == 400


def test_a_types_own_quota_holds(client: Client, admin: Client, world: World) -> None:
    make_type(world, "gold")
    with world.db.write() as session:
        session.add(models.Quota(project_id=PROJECT, resource="volumes_gold", limit=1))
    first, second = client.volume()["id"], client.volume()["id"]
    assert act(client, first, "os-retype", new_type="gold").status_code == 202
    assert act(client, second, "os-retype", new_type="gold").status_code == 413
    assert client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}}).status_code == 413
    assert client.get(f"/v3/volumes/{second}").json["volume"]["status"] == "available"


def test_a_types_own_quota_holds_for_the_snapshots_that_get_it(client: Client, world: World) -> None:
    make_type(world, "gold")
    with world.db.write() as session:
        session.add(models.Quota(project_id=PROJECT, resource="snapshots_gold", limit=1))
        session.add(models.Quota(project_id=PROJECT, resource="gigabytes_gold", limit=2))
    first, second = client.volume()["id"], client.volume()["id"]
    for volume in (first, second, second):
        assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 202
    assert act(client, second, "os-retype", new_type="gold").status_code == 413
    assert act(client, first, "os-retype", new_type="gold").status_code == 202
    assert client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}}).status_code == 413


@two
def test_a_type_says_where_a_volume_goes(admin: Client, world: World) -> None:
    make_type(world, "quick", volume_backend_name="fast")
    make_type(world, "nowhere", volume_backend_name="tape")
    volume = admin.volume(volume_type="quick")
    assert volume["os-vol-host-attr:host"] == FAST
    assert cluster_of(world, "fast").images("") == {f"volume-{volume['id']}"}
    assert cluster_of(world).images("") == set()
    assert admin.volume()["os-vol-host-attr:host"] == "testhost@ceph#ceph"


@two
def test_a_type_of_another_pool_moves_the_volume_if_it_may(admin: Client, world: World) -> None:
    make_type(world, "quick", volume_backend_name="fast")
    volume = admin.volume()["id"]
    snapshot = admin.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    assert act(admin, volume, "os-retype", new_type="quick").status_code == 400
    assert act(admin, volume, "os-retype", new_type="quick", migration_policy="on-demand").status_code == 202
    found = admin.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["volume_type"], found["status"], found["os-vol-host-attr:host"]) == ("quick", "available", FAST)
    assert found["os-vol-mig-status-attr:migstat"] == "success"
    image = f"volume-{volume}"
    assert (cluster_of(world).images(""), cluster_of(world, "fast").images("")) == (set(), {image})
    assert [one.name for one in cluster_of(world, "fast").snapshots(image)] == [f"snapshot-{snapshot}"]
    assert admin.delete(f"/v3/snapshots/{snapshot}").status_code == 202
    assert admin.delete(f"/v3/volumes/{volume}").status_code == 202
    assert cluster_of(world, "fast").images("") == set()


@two
def test_a_volume_moves_only_where_there_is_room(admin: Client, world: World) -> None:
    make_type(world, "thick", **{"provisioning:type": "thick"})
    volume = admin.volume(size=5, volume_type="thick")["id"]
    pool = cluster_of(world, "fast")
    pool.total_bytes = pool.free_bytes = 4 * 2**30
    world.room.clear()
    refused = act(admin, volume, "os-migrate_volume", host=FAST)
    assert (refused.status_code, "not enough room" in refused.text) == (400, True)
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    pool.total_bytes = pool.free_bytes = 9 * 2**30
    world.room.clear()
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202


@two
def test_an_administrator_moves_a_volume(admin: Client, client: Client, world: World) -> None:
    volume = admin.volume()["id"]
    assert act(client, volume, "os-migrate_volume", host=FAST).status_code == 403
    assert act(admin, volume, "os-migrate_volume", host="testhost@ceph#ceph").status_code == 400
    unknown = act(admin, volume, "os-migrate_volume", host="testhost@tape#tape")
    assert unknown.status_code == 400
    assert unknown.json["badRequest"]["message"] == "Invalid host: No available service named 'testhost@tape#tape'"
    assert act(admin, volume, "os-migrate_volume").status_code == 400
    assert act(admin.at("3.16"), volume, "os-migrate_volume", cluster="c").status_code == 400
    assert act(admin.at("3.16"), volume, "os-migrate_volume", cluster="c", host=FAST).status_code == 400
    assert (
        act(admin, volume, "os-migrate_volume", host=FAST, force_host_copy="false", lock_volume=True).status_code == 202
    )
    found = admin.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["status"], found["os-vol-host-attr:host"], found["os-vol-mig-status-attr:migstat"]) == (
        "available", FAST, "success")  # fmt: skip


@two
def test_nothing_is_moved_to_a_disabled_back_end(admin: Client, world: World) -> None:
    services.beat(world)
    volume = admin.volume()["id"]
    named = {"binary": "cinder-volume", "host": "testhost@fast"}
    assert admin.put("/v3/os-services/disable", named).status_code == 200
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 400
    assert admin.put("/v3/os-services/enable", named).status_code == 200
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202


@two
def test_a_volume_is_not_moved_to_where_its_type_cannot_be(admin: Client, world: World) -> None:
    make_type(world, "quick", volume_backend_name="fast")
    volume = admin.volume(volume_type="quick")["id"]
    assert act(admin, volume, "os-migrate_volume", host="testhost@ceph#ceph").status_code == 400
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["os-vol-host-attr:host"] == FAST
    assert admin.volume(source_volid=volume)["status"] == "available"


@two
def test_what_is_on_its_way_is_left_alone(admin: Client, world: World) -> None:
    make_type(world, "gold")
    volume = admin.volume()["id"]
    act(admin, volume, "os-reset_status", migration_status="migrating")
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 400
    assert act(admin, volume, "os-retype", new_type="gold").status_code == 400
    act(admin, volume, "os-reset_status", migration_status="error")
    assert act(admin, volume, "os-retype", new_type="gold").status_code == 202
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["os-vol-host-attr:host"] == FAST


@two
def test_what_belongs_to_a_volume_on_its_way_waits_for_it(
    admin: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, cluster = admin.volume()["id"], cluster_of(world)
    kept, dropped = [
        admin.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"] for _ in range(2)
    ]
    backup = admin.post("/v3/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"]
    move = cluster.move

    def stop_half_way(*arguments: Any) -> None:
        move(*arguments)
        raise errors.CephUnavailable("half way")

    def of(kind: str, name: str) -> str:
        answer = admin.get(f"/v3/{kind}s/{name}")
        return answer.json[kind]["status"] if answer.status_code == 200 else "gone"

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "move", stop_half_way)
        assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202
        assert admin.delete(f"/v3/snapshots/{dropped}").status_code == 202
        assert admin.delete(f"/v3/backups/{backup}").status_code == 202
        assert admin.post("/v3/volumes", {"volume": {"snapshot_id": kept}}).status_code == 400
        named = {"volume_id": volume, "ref": {"source-name": "theirs"}}
        managed = admin.at("3.8").post("/v3/manageable_snapshots", {"snapshot": named})
        assert (managed.status_code, "on its way" in managed.text) == (400, True)
        settle(world)
        assert of("volume", volume) == "maintenance"
        assert (of("snapshot", dropped), of("backup", backup)) == ("deleting", "deleting")
    settle(world)
    assert of("volume", volume) == "available"
    assert (of("snapshot", dropped), of("backup", backup)) == ("gone", "gone")
    there = cluster_of(world, "fast").snapshots(f"volume-{volume}")
    assert [one.name for one in there] == [f"snapshot-{kept}"]
    assert admin.volume(snapshot_id=kept)["os-vol-host-attr:host"] == FAST


@two
@pytest.mark.parametrize("kind", ["snapshot", "backup"])
def test_a_volume_stays_while_what_belongs_to_it_goes(
    admin: Client, world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    volume, cluster = admin.volume()["id"], cluster_of(world)
    made = admin.post(f"/v3/{kind}s", {kind: {"volume_id": volume}}).json[kind]["id"]

    def refuse(*_: Any) -> None:
        raise errors.CephUnavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "remove_snapshot", refuse)
        assert admin.delete(f"/v3/{kind}s/{made}").status_code == 202
        assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 400
    settle(world)
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["os-vol-host-attr:host"] == FAST


@two
def test_what_somebody_has_open_stays_where_it_is(admin: Client, world: World) -> None:
    volume = admin.volume()["id"]
    cluster_of(world).watchers[f"volume-{volume}"] = ["192.0.2.1:0/1"]
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202
    found = admin.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["status"], found["os-vol-host-attr:host"], found["os-vol-mig-status-attr:migstat"]) == (
        "available", "testhost@ceph#ceph", "error")  # fmt: skip
    cluster_of(world).watchers.clear()
    assert admin.delete(f"/v3/volumes/{volume}").status_code == 202


@two
def test_another_cluster_is_out_of_reach(admin: Client, world: World) -> None:
    cluster_of(world, "fast").cluster_id = "another"
    make_type(world, "quick", volume_backend_name="fast")
    volume = admin.volume()["id"]
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 400
    assert act(admin, volume, "os-retype", new_type="quick", migration_policy="on-demand").status_code == 400


def test_a_pool_that_fits_nothing(client: Client, world: World) -> None:
    make_type(world, "nowhere", volume_backend_name="tape")
    volume = client.volume()["id"]
    assert act(client, volume, "os-retype", new_type="nowhere").status_code == 400
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


@pytest.mark.parametrize(
    "conf",
    [{**TWO, "ceph__rbd_namespace_per_project": True, "fast__rbd_namespace_per_project": True}],
    indirect=True,
)
def test_one_in_use_goes_to_its_projects_namespace(admin: Client, world: World, hypervisor: FakeHypervisor) -> None:
    guest = hypervisor.find(hypervisor.add_server("vm1", PROJECT).id)
    volume = admin.volume()["id"]
    body = {"volumeAttachment": {"volumeId": volume}}
    assert admin.post(f"/v2.1/servers/{guest.server.id}/os-volume_attachments", body).status_code == 200
    namespace = guest.held[volume].namespace
    assert namespace
    guest.write(volume, "mine")
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 202
    found = admin.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["status"], found["os-vol-host-attr:host"]) == ("in-use", FAST)
    assert (guest.held[volume].pool, guest.held[volume].namespace) == ("nvme", namespace)
    assert cluster_of(world).within(namespace).images("") == set()
    fast = cluster_of(world, "fast")
    assert (fast.within("").images(""), fast.within(namespace).images("")) == (set(), {f"volume-{volume}"})
    guest.restart()
    settle(world)
    assert (guest.held[volume].pool, guest.held[volume].namespace) == ("nvme", namespace)
