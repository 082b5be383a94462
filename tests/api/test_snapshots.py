# SPDX-License-Identifier: Apache-2.0
"""Snapshots over HTTP, volumes made from them and from other volumes, and going back to them."""

from __future__ import annotations

from typing import Any

import pytest

from cinderlite import errors
from cinderlite.context import World
from conftest import PROJECT, Client, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor


def snapshot(client: Client, volume: str, **fields: Any) -> dict[str, Any]:
    """Take a snapshot and answer it as it is afterwards."""
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume, **fields}})
    assert made.status_code == 202, made.text
    return client.get(f"/v3/snapshots/{made.json['snapshot']['id']}").json["snapshot"]  # type: ignore[no-any-return]


def attached(client: Client, hypervisor: FakeHypervisor) -> tuple[str, str]:
    """Ids of a volume in use and of its server."""
    server = hypervisor.add_server("vm", PROJECT).id
    volume = client.volume()["id"]
    answer = client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})
    assert answer.status_code == 200, answer.text
    return volume, server


def test_a_snapshot_is_there_when_the_answer_comes(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume(size=2)
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume["id"], "name": "a", "metadata": {"k": "v"}}})
    assert made.json["snapshot"]["status"] == "creating"
    found = client.at("3.65").get(f"/v3/snapshots/{made.json['snapshot']['id']}").json["snapshot"]
    assert found == {
        "id": found["id"],
        "created_at": found["created_at"],
        "updated_at": found["updated_at"],
        "name": "a",
        "description": None,
        "volume_id": volume["id"],
        "status": "available",
        "size": 2,
        "metadata": {"k": "v"},
        "group_snapshot_id": None,
        "user_id": "alice",
        "consumes_quota": True,
        "os-extended-snapshot-attributes:project_id": PROJECT,
        "os-extended-snapshot-attributes:progress": "100%",
    }
    assert [one.name for one in cluster.snapshots(f"volume-{volume['id']}")] == [f"snapshot-{found['id']}"]
    assert "user_id" not in client.get("/v3/snapshots").json["snapshots"][0]
    assert "os-extended-snapshot-attributes:progress" not in client.get("/v3/snapshots").json["snapshots"][0]


def test_what_cannot_be_snapshotted_is_refused(client: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    body = {"snapshot": {"volume_id": volume}}
    assert stranger.post("/v3/snapshots", body).status_code == 404
    assert client.post("/v3/snapshots", {"snapshot": {"name": "x"}}).status_code == 400
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": None}}).status_code == 404
    assert (
        client.at("3.66").post("/v3/snapshots", {"snapshot": {"volume_id": volume, "force": False}}).status_code == 400
    )
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "error"}})
    answer = client.post("/v3/snapshots", body)
    assert answer.status_code == 400
    assert "error" in answer.json["badRequest"]["message"]
    assert client.get("/v3/snapshots").json["snapshots"] == []


def test_a_volume_in_use_needs_force_before_366(client: Client, hypervisor: FakeHypervisor) -> None:
    volume, _ = attached(client, hypervisor)
    body = {"snapshot": {"volume_id": volume}}
    assert client.at("3.65").post("/v3/snapshots", body).status_code == 400
    assert client.at("3.66").post("/v3/snapshots", body).status_code == 202
    assert snapshot(client, volume, force=True)["status"] == "available"


def test_no_snapshot_is_asked_of_a_guest_that_does_not_answer(
    client: Client, hypervisor: FakeHypervisor, cluster: FakeCluster, world: World
) -> None:
    volume, server = attached(client, hypervisor)
    hypervisor.guests[server].silent = True
    found = snapshot(client, volume, force=True)
    assert found["status"] == "creating"
    assert cluster.snapshots(f"volume-{volume}") == []
    hypervisor.guests[server].silent = False
    settle(world)
    assert client.get(f"/v3/snapshots/{found['id']}").json["snapshot"]["status"] == "available"


def test_snapshots_are_counted(admin: Client, client: Client) -> None:
    admin.put(f"/v3/os-quota-sets/{PROJECT}", {"quota_set": {"snapshots": 1}})
    volume = client.volume()["id"]
    snapshot(client, volume)
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 413


def test_a_snapshot_of_another_project_does_not_exist(client: Client, stranger: Client, admin: Client) -> None:
    one = f"/v3/snapshots/{snapshot(client, client.volume()['id'])['id']}"
    assert stranger.get(one).status_code == 404
    assert stranger.delete(one).status_code == 404
    assert stranger.put(one, {"snapshot": {"name": "mine"}}).status_code == 404
    assert stranger.get("/v3/snapshots?all_tenants=1").json["snapshots"] == []
    assert len(admin.get("/v3/snapshots?all_tenants=1").json["snapshots"]) == 1
    assert (
        stranger.post("/v3/volumes", {"volume": {"snapshot_id": one.rpartition("/")[2], "size": 1}}).status_code == 404
    )


def test_a_reader_only_reads(client: Client, reader: Client) -> None:
    one = f"/v3/snapshots/{snapshot(client, client.volume()['id'])['id']}"
    assert reader.get(one).status_code == 200
    assert reader.delete(one).status_code == 403
    assert client.post(f"{one}/action", {"os-force_delete": {}}).status_code == 403


def test_lists_are_filtered(client: Client) -> None:
    first, second = client.volume()["id"], client.volume()["id"]
    snapshot(client, first, name="a", metadata={"k": "v"})
    snapshot(client, second, name="b")

    def names(query: str, version: str = "3.45") -> list[str]:
        return [one["name"] for one in client.at(version).get(f"/v3/snapshots?{query}").json["snapshots"]]

    assert names(f"volume_id={first}") == ["a"]
    assert names("metadata={'k':'v'}") == ["a"]
    assert sorted(names("metadata={'k':'v'}", "3.21")) == ["a", "b"]
    assert names("sort=name:asc") == ["a", "b"]
    assert names("sort=name:asc&limit=1") == ["a"]
    assert client.at("3.45").get("/v3/snapshots?with_count=true").json["count"] == 2
    assert client.at("3.31").get("/v3/snapshots?colour=red").status_code == 400


def test_metadata(client: Client) -> None:
    one = f"/v3/snapshots/{snapshot(client, client.volume()['id'])['id']}/metadata"
    assert client.post(one, {"metadata": {"a": "1", "b": "2"}}).json == {"metadata": {"a": "1", "b": "2"}}
    assert client.put(one, {"metadata": {"b": "3"}}).json == {"metadata": {"b": "3"}}
    assert client.put(f"{one}/c", {"meta": {"c": "4"}}).json == {"meta": {"c": "4"}}
    assert client.put(f"{one}/c", {"meta": {"d": "4"}}).status_code == 400
    assert client.delete(f"{one}/b").status_code == 200
    assert client.delete(f"{one}/b").status_code == 404
    assert client.get(one).json == {"metadata": {"c": "4"}}
    assert client.get(f"{one}/x").status_code == 404


def test_a_slash_in_a_key_is_taken_only_when_a_snapshot_is_created(client: Client) -> None:
    made = snapshot(client, client.volume()["id"], metadata={"a/b": "1"})
    assert made["metadata"] == {"a/b": "1"}
    one = f"/v3/snapshots/{made['id']}/metadata"
    for ask in (client.post, client.put):
        assert ask(one, {"metadata": {"c/d": "1"}}).status_code == 400
        assert ask(one, {"metadata": {"c": "1"}, "d": 1}).status_code == 400
    assert client.get(one).json == {"metadata": {"a/b": "1"}}


def test_bodies_that_are_no_snapshot(client: Client) -> None:
    volume = client.volume()["id"]
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume, "colour": "red"}}).status_code == 400
    one = f"/v3/snapshots/{snapshot(client, volume)['id']}"
    for body in ({}, {"colour": "red"}, {"status": "error"}):
        assert client.put(one, {"snapshot": body}).status_code == 400
    assert client.put(one, {"snapshot": {"display_description": "d"}}).json["snapshot"]["description"] == "d"


def test_a_deleted_snapshot_is_gone(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    found = snapshot(client, volume)
    assert client.delete(f"/v3/snapshots/{found['id']}").status_code == 202
    assert client.get(f"/v3/snapshots/{found['id']}").status_code == 404
    assert cluster.snapshots(f"volume-{volume}") == []


def test_only_what_is_at_rest_is_deleted(client: Client, admin: Client) -> None:
    one = f"/v3/snapshots/{snapshot(client, client.volume()['id'])['id']}"
    assert admin.post(f"{one}/action", {"os-reset_status": {"status": "Creating"}}).status_code == 202
    assert client.delete(one).status_code == 400
    assert admin.post(f"{one}/action", {"os-reset_status": {"status": "nonsense"}}).status_code == 400
    assert admin.post(f"{one}/action", {"os-force_delete": {}}).status_code == 202
    assert client.get(one).status_code == 404


def test_a_compute_service_reports_how_far_it_is(client: Client, admin: Client) -> None:
    one = f"/v3/snapshots/{snapshot(client, client.volume()['id'])['id']}"
    report = {"os-update_snapshot_status": {"status": "error", "progress": "80%"}}
    assert client.post(f"{one}/action", report).status_code == 400
    admin.post(f"{one}/action", {"os-reset_status": {"status": "creating"}})
    assert (
        client.post(f"{one}/action", {"os-update_snapshot_status": {"status": "error", "progress": "200%"}}).status_code
        == 400
    )
    assert client.post(f"{one}/action", report).status_code == 202
    found = client.get(one).json["snapshot"]
    assert (found["status"], found["os-extended-snapshot-attributes:progress"]) == ("error", "80%")


def test_actions_are_named_one_at_a_time(client: Client) -> None:
    one = f"/v3/snapshots/{snapshot(client, client.volume()['id'])['id']}/action"
    bodies: list[dict[str, Any]] = [{}, {"os-explode": {}}, {"os-reset_status": {}, "os-force_delete": {}}]
    for body in bodies:
        answer = client.post(one, body)
        assert answer.status_code == 400
        assert "There is no such action" in answer.json["badRequest"]["message"]


def test_an_interrupted_snapshot_is_finished(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]

    def in_doubt(_name: str, _snap: str) -> None:
        raise errors.CephTimeout("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "snapshot", in_doubt)
        found = snapshot(client, volume)
        assert found["status"] == "creating"
    settle(world)
    assert client.get(f"/v3/snapshots/{found['id']}").json["snapshot"]["status"] == "available"
    assert len(cluster.snapshots(f"volume-{volume}")) == 1


# -- volumes from them


def test_a_volume_from_a_snapshot_has_its_data(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume(size=2)["id"]
    cluster.data[cluster.info(f"volume-{volume}").id] = "then"
    source = snapshot(client, volume)["id"]
    cluster.data[cluster.info(f"volume-{volume}").id] = "now"
    made = client.volume(size=None, snapshot_id=source)
    assert (made["status"], made["size"], made["snapshot_id"], made["source_volid"]) == ("available", 2, source, None)
    assert cluster.data[cluster.info(f"volume-{made['id']}").id] == "then"
    bigger = client.volume(size=5, snapshot_id=source)
    assert cluster.info(f"volume-{bigger['id']}").size_bytes == 5 * 2**30
    answer = client.post("/v3/volumes", {"volume": {"size": 1, "snapshot_id": source}})
    assert answer.status_code == 400


def test_a_volume_from_a_volume_has_its_data(client: Client, cluster: FakeCluster, hypervisor: FakeHypervisor) -> None:
    volume, server = attached(client, hypervisor)
    cluster.data[cluster.info(f"volume-{volume}").id] = "now"
    made = client.volume(size=None, source_volid=volume)
    assert (made["status"], made["size"], made["source_volid"]) == ("available", 1, volume)
    assert cluster.data[cluster.info(f"volume-{made['id']}").id] == "now"
    hypervisor.guests[server].silent = True
    assert client.volume(size=None, source_volid=volume)["status"] == "creating"


def test_what_cannot_be_a_source_is_refused(client: Client, admin: Client, stranger: Client) -> None:
    volume = client.volume()["id"]
    source = snapshot(client, volume)["id"]
    missing = "11111111-2222-4333-8444-555555555555"
    for key in ("snapshot_id", "source_volid"):
        assert client.post("/v3/volumes", {"volume": {"size": 1, key: missing}}).status_code == 404
        assert (
            stranger.post(
                "/v3/volumes", {"volume": {"size": 1, key: source if key == "snapshot_id" else volume}}
            ).status_code
            == 404
        )
    assert client.post("/v3/volumes", {"volume": {"snapshot_id": source, "source_volid": volume}}).status_code == 400
    assert client.post("/v3/volumes", {"volume": {}}).status_code == 400
    admin.post(f"/v3/snapshots/{source}/action", {"os-reset_status": {"status": "error"}})
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "error"}})
    assert client.post("/v3/volumes", {"volume": {"snapshot_id": source}}).status_code == 400
    assert client.post("/v3/volumes", {"volume": {"source_volid": volume}}).status_code == 400


def test_lifetimes_are_decoupled(client: Client, cluster: FakeCluster, world: World) -> None:
    volume = client.volume()["id"]
    source = snapshot(client, volume)["id"]
    made = client.volume(snapshot_id=source)["id"]
    assert client.delete(f"/v3/snapshots/{source}").status_code == 202
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert client.get(f"/v3/volumes/{made}").json["volume"]["status"] == "available"
    assert len(cluster.trashed()) == 1
    client.delete(f"/v3/volumes/{made}")
    settle(world)
    assert cluster.trashed() == []


def test_a_volume_with_snapshots_goes_only_with_them(
    client: Client, admin: Client, cluster: FakeCluster, world: World
) -> None:
    volume = client.volume()["id"]
    first, second = (snapshot(client, volume)["id"] for _ in range(2))
    one = f"/v3/volumes/{volume}"
    assert client.delete(one).status_code == 400
    admin.post(f"/v3/snapshots/{second}/action", {"os-reset_status": {"status": "creating"}})
    assert client.delete(f"{one}?cascade=true").status_code == 400
    admin.post(f"/v3/snapshots/{second}/action", {"os-reset_status": {"status": "available"}})
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.7:0/123"]
    assert client.delete(f"{one}?cascade=true").status_code == 400
    assert client.get(f"/v3/snapshots/{first}").json["snapshot"]["status"] == "available"
    cluster.watchers.clear()
    assert client.delete(f"{one}?cascade=true").status_code == 202
    for snap in (first, second):
        assert client.get(f"/v3/snapshots/{snap}").status_code == 404
    settle(world)
    assert (cluster.trashed(), cluster.images("volume-")) == ([], set())


def test_force_is_for_administrators(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "maintenance"}})
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert client.at("3.23").delete(f"/v3/volumes/{volume}?force=true").status_code == 403
    assert admin.at("3.22").delete(f"/v3/volumes/{volume}?force=true").status_code == 400
    assert admin.at("3.23").delete(f"/v3/volumes/{volume}?force=true").status_code == 202
    assert client.get(f"/v3/volumes/{volume}").status_code == 404


# -- bigger, back, by hand


def act(client: Client, volume: str, **action: Any) -> int:
    [(name, body)] = action.items()
    return int(client.post(f"/v3/volumes/{volume}/action", {name.replace("__", "-"): body}).status_code)


def test_a_volume_grows(client: Client, cluster: FakeCluster, admin: Client) -> None:
    volume = client.volume(size=2)["id"]
    assert act(client, volume, os__extend={"new_size": "3"}) == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["size"] == 3
    assert cluster.info(f"volume-{volume}").size_bytes == 3 * 2**30
    for body in ({"new_size": 3}, {"new_size": 1}, {"new_size": "big"}, {}, {"new_size": 4, "more": 1}):
        assert act(client, volume, os__extend=body) == 400
    admin.put(f"/v3/os-quota-sets/{PROJECT}", {"quota_set": {"gigabytes": 4}})
    assert act(client, volume, os__extend={"new_size": 5}) == 413
    assert act(client, volume, os__extend={"new_size": 4}) == 202
    found = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["size"], found["status"]) == (4, "available")


def test_a_volume_in_use_grows_since_342(client: Client, hypervisor: FakeHypervisor, world: World) -> None:
    volume, server = attached(client, hypervisor)
    assert act(client.at("3.41"), volume, os__extend={"new_size": 2}) == 400
    assert act(client.at("3.42"), volume, os__extend={"new_size": 2}) == 202
    assert hypervisor.guests[server].sizes == {volume: 2 * 2**30}
    found = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["size"], found["status"]) == (2, "in-use")
    hypervisor.guests[server].silent = True
    assert act(client.at("3.42"), volume, os__extend={"new_size": 3}) == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "extending"
    hypervisor.guests[server].silent = False
    settle(world)
    assert hypervisor.guests[server].sizes == {volume: 3 * 2**30}
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"


def test_a_busy_image_is_tried_again_and_not_for_ever(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its lock is one of a process that was just killed."""
    volume = client.volume()["id"]
    path = f"/v3/snapshots/{snapshot(client, volume)['id']}"

    def busy(name: str, _snap: str) -> None:
        raise errors.ImageBusy(name, "another client")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "snapshot", busy)
        patched.setattr(cluster, "remove_snapshot", busy)
        other = f"/v3/snapshots/{snapshot(client, volume)['id']}"
        assert client.get(other).json["snapshot"]["status"] == "creating"
        assert client.delete(path).status_code == 202
        assert client.get(path).json["snapshot"]["status"] == "deleting"
    settle(world)
    assert client.get(other).json["snapshot"]["status"] == "available"
    assert client.get(path).status_code == 404

    def silent(*_: str) -> None:
        raise errors.CephUnavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "remove_snapshot", silent)
        assert client.delete(other).status_code == 202
        settle(world, passes=40)
        patched.setattr(cluster, "remove_snapshot", busy)
        settle(world, passes=5)
        assert client.get(other).json["snapshot"]["status"] == "deleting"
        settle(world, passes=40)
    assert client.get(other).json["snapshot"]["status"] == "error_deleting"
    assert client.delete(other).status_code == 202
    assert client.get(other).status_code == 404


def test_a_clone_that_librbd_finds_busy_is_made_later(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = snapshot(client, client.volume()["id"])["id"]

    def busy(name: str, *_: object, **_named: object) -> None:
        raise errors.ImageBusy(name, "another client")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "clone", busy)
        path = f"/v3/volumes/{client.volume(snapshot_id=taken)['id']}"
        assert client.get(path).json["volume"]["status"] == "creating"
    settle(world)
    assert client.get(path).json["volume"]["status"] == "available"


def test_nobody_waits_for_the_end_of_an_extension(admin: Client) -> None:
    volume = admin.volume()["id"]
    assert act(admin, volume, os__extend_volume_completion={"error": False}) == 400


def test_a_volume_goes_back_to_its_newest_snapshot(client: Client, cluster: FakeCluster, admin: Client) -> None:
    volume = client.volume()["id"]
    image = cluster.info(f"volume-{volume}").id
    cluster.data[image] = "old"
    older = snapshot(client, volume)["id"]
    cluster.data[image] = "good"
    newest = snapshot(client, volume)["id"]
    cluster.data[image] = "bad"
    at = client.at("3.40")
    assert act(client.at("3.39"), volume, revert={"snapshot_id": newest}) == 404
    assert act(at, volume, revert={"snapshot_id": older}) == 400
    admin.post(f"/v3/snapshots/{newest}/action", {"os-reset_status": {"status": "error"}})
    assert act(at, volume, revert={"snapshot_id": newest}) == 409
    admin.post(f"/v3/snapshots/{newest}/action", {"os-reset_status": {"status": "available"}})
    assert act(at, volume, revert={"snapshot_id": newest}) == 202
    assert cluster.data[image] == "good"
    assert client.get(f"/v3/snapshots/{newest}").json["snapshot"]["status"] == "available"
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    act(client, volume, os__extend={"new_size": 2})
    assert act(at, volume, revert={"snapshot_id": newest}) == 400


def test_a_status_is_set_by_hand(client: Client, admin: Client, hypervisor: FakeHypervisor) -> None:
    volume = client.volume()["id"]
    assert act(client, volume, os__reset_status={"status": "error"}) == 403
    for body in (
        {},
        {"status": "deleting"},
        {"status": "reverting"},
        {"status": "in-use"},
        {"attach_status": "attaching"},
        {"colour": "red"},
    ):
        assert act(admin, volume, os__reset_status=body) == 400
    assert act(admin, volume, os__reset_status={"status": "error", "colour": None}) == 400
    assert act(admin, volume, os__reset_status={"status": None}) == 400
    assert act(admin, volume, os__reset_status={"status": "Maintenance", "attach_status": None}) == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "maintenance"
    answer = admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {}})
    assert answer.json["badRequest"]["message"].startswith("Must specify 'status', 'attach_status'")
    assert act(admin, volume, os__reset_status={"status": "error", "migration_status": "migrating"}) == 202
    found = admin.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["status"], found["os-vol-mig-status-attr:migstat"]) == ("error", "migrating")
    assert act(admin, volume, os__reset_status={"migration_status": "none"}) == 202
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["os-vol-mig-status-attr:migstat"] is None
    plugged, _ = attached(client, hypervisor)
    assert act(admin, plugged, os__reset_status={"attach_status": "detached"}) == 400
    assert act(admin, plugged, os__force_delete={}) == 400


def test_a_volume_whose_operation_is_under_way_is_not_reset(client: Client, admin: Client, world: World) -> None:
    cluster_of(world).stuck = True
    made = client.post("/v3/volumes", {"volume": {"size": 1}}).json["volume"]["id"]
    assert act(admin, made, os__reset_status={"status": "available"}) == 400
    assert act(admin, made, os__force_delete={}) == 400
    cluster_of(world).release()
    settle(world)
    assert client.get(f"/v3/volumes/{made}").json["volume"]["status"] == "available"
