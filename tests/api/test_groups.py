# SPDX-License-Identifier: Apache-2.0
"""Groups from outside: what they are, who is in them, how they end."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy

from cinderlite.context import World
from cinderlite.core import groups, volumes
from cinderlite.db import models
from conftest import Client, cluster_of, settle
from fakes_cluster import FakeCluster

UNKNOWN = str(uuid.UUID(int=0))
KIND = "__DEFAULT__"


@pytest.fixture
def group_type(admin: Client) -> str:
    """The id of a group type without specs."""
    made = admin.at("3.11").post("/v3/group_types", {"group_type": {"name": "plain"}})
    return str(made.json["group_type"]["id"])


def make(client: Client, **fields: Any) -> str:
    """A group of the type "plain" for volumes of the default type; its id."""
    answer = client.at("3.13").post("/v3/groups", {"group": {"group_type": "plain", "volume_types": [KIND], **fields}})
    assert answer.status_code == 202, answer.text
    assert set(answer.json["group"]) == {"id", "name"}
    return str(answer.json["group"]["id"])


def shown(client: Client, group: str, version: str = "3.13", query: str = "") -> dict[str, Any]:
    answer = client.at(version).get(f"/v3/groups/{group}{query}")
    assert answer.status_code == 200, answer.text
    return answer.json["group"]  # type: ignore[no-any-return]


def member(client: Client, group: str, **fields: Any) -> str:
    """A volume in a group; its id."""
    return str(client.at("3.13").volume(group_id=group, volume_type=KIND, **fields)["id"])


def inside(client: Client, group: str) -> list[str]:
    return shown(client, group, "3.25", "?list_volume=True")["volumes"]  # type: ignore[no-any-return]


def act(client: Client, group: str, *, version: str = "3.71", **action: Any) -> Any:
    return client.at(version).post(f"/v3/groups/{group}/action", action)


def delete(client: Client, group: str, **options: Any) -> Any:
    return act(client, group, delete={key.replace("_", "-"): value for key, value in options.items()})


# -- what they are


def test_a_group_is_shown(client: Client, reader: Client, admin: Client, group_type: str) -> None:
    group = make(client, name=" pair ", description="d")
    default = client.get("/v3/types/default").json["volume_type"]["id"]
    one = shown(reader, group)
    assert one.pop("created_at")
    assert one == {
        "id": group, "name": "pair", "description": "d", "status": "available", "availability_zone": "nova",
        "group_type": group_type, "volume_types": [default],
    }  # fmt: skip
    assert set(shown(client, group, "3.14")) - set(shown(client, group)) == {"group_snapshot_id", "source_group_id"}
    assert "volumes" not in shown(client, group, "3.25")
    assert "volumes" not in shown(client, group, "3.24", "?list_volume=True")
    assert shown(client, group, "3.25", "?list_volume=True")["volumes"] == []
    assert client.at("3.25").get(f"/v3/groups/{group}?list_volume=maybe").status_code == 400
    assert shown(client, group, "3.38")["replication_status"] == "disabled"
    assert "project_id" not in shown(client, group, "3.58")
    assert shown(admin, group, "3.58")["project_id"] == client.headers["X-Test-Project"]


def test_groups_are_of_3_13(client: Client, group_type: str) -> None:
    group = make(client)
    for path in ("/v3/groups", "/v3/groups/detail", f"/v3/groups/{group}"):
        assert client.at("3.12").get(path).status_code == 404
        assert client.at("3.13").get(path).status_code == 200
    assert act(client, group, version="3.19", reset_status={"status": "error"}).status_code == 404
    assert act(client, group, version="3.37", enable_replication={}).status_code == 404


def test_types_by_name_or_id(client: Client, group_type: str) -> None:
    default = client.get("/v3/types/default").json["volume_type"]["id"]
    for kind, kinds in (("plain", [KIND]), (group_type, [default]), ("plain", [default, KIND])):
        assert shown(client, make(client, group_type=kind, volume_types=kinds))["volume_types"] == [default]


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"group_type": None}, 400), ({"group_type": UNKNOWN}, 404), ({"group_type": "nope"}, 404),
     ({"group_type": ""}, 400), ({"volume_types": []}, 400), ({"volume_types": None}, 400),
     ({"volume_types": [KIND, KIND]}, 400), ({"volume_types": ["nope"]}, 404), ({"volume_types": KIND}, 400),
     ({"availability_zone": "mars"}, 400), ({"name": "x" * 256}, 400), ({"colour": "red"}, 400),
     ({"group_type": "default_cgsnapshot_type"}, 400)],
)  # fmt: skip
def test_what_a_group_cannot_be(client: Client, group_type: str, fields: dict[str, Any], status: int) -> None:
    body = {"group_type": group_type, "volume_types": [KIND], **fields}
    assert client.at("3.13").post("/v3/groups", {"group": body}).status_code == status
    assert client.at("3.13").get("/v3/groups").json == {"groups": []}


def test_a_private_type_is_not_for_members(client: Client, admin: Client, group_type: str) -> None:
    admin.at("3.11").put(f"/v3/group_types/{group_type}", {"group_type": {"is_public": False}})
    body = {"group": {"group_type": "plain", "volume_types": [KIND]}}
    assert client.at("3.13").post("/v3/groups", body).status_code == 404
    assert admin.at("3.13").post("/v3/groups", body).status_code == 202


def test_a_type_in_use_stays(client: Client, admin: Client, group_type: str) -> None:
    group = make(client)
    path = f"/v3/group_types/{group_type}"
    answer = admin.at("3.11").delete(path)
    assert (answer.status_code, answer.json["badRequest"]["message"]) == (400, "Target group type is still in use.")
    delete(client, group)
    assert admin.at("3.11").delete(path).status_code == 202


def test_a_volume_type_of_a_group_stays(client: Client, admin: Client, group_type: str) -> None:
    kind = admin.post("/v3/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    group = make(client, volume_types=["gold"])
    assert admin.delete(f"/v3/types/{kind}").status_code == 400
    delete(client, group)
    assert admin.delete(f"/v3/types/{kind}").status_code == 202


@pytest.mark.parametrize("conf", [{"quota_groups": 2}], indirect=True)
def test_the_quota_of_groups(client: Client, stranger: Client, group_type: str) -> None:
    for _ in range(2):
        group = make(client)
    body = {"group": {"group_type": "plain", "volume_types": [KIND]}}
    answer = client.at("3.13").post("/v3/groups", body)
    assert answer.status_code == 413
    assert "exceeded" in answer.json["overLimit"]["message"]
    make(stranger)
    usage = client.get(f"/v3/os-quota-sets/{client.headers['X-Test-Project']}?usage=True").json["quota_set"]["groups"]
    assert (usage["in_use"], usage["limit"]) == (2, 2)
    delete(client, group)
    make(client)


# -- lists


def test_lists(client: Client, stranger: Client, admin: Client, group_type: str) -> None:
    made = [make(client, name=name) for name in "abc"]
    other = make(stranger, name="d")
    asking = client.at("3.13")
    assert asking.get("/v3/groups?sort=name:asc&limit=2").json["groups"] == [
        {"id": made[0], "name": "a"}, {"id": made[1], "name": "b"}]  # fmt: skip
    page = asking.get("/v3/groups/detail?limit=2&sort=name:asc").json
    rest = asking.get(page["group_links"][0]["href"].removeprefix("http://localhost")).json
    assert [one["name"] for one in page["groups"] + rest["groups"]] == ["a", "b", "c"]
    assert [one["id"] for one in asking.get("/v3/groups?name=b").json["groups"]] == [made[1]]
    assert [one["id"] for one in client.at("3.34").get("/v3/groups?name~=b").json["groups"]] == [made[1]]
    assert client.at("3.31").get("/v3/groups?colour=red").status_code == 400
    assert asking.get(f"/v3/groups?marker={UNKNOWN}").status_code == 404
    everything = admin.at("3.13").get("/v3/groups?all_tenants=1").json["groups"]
    assert {one["id"] for one in everything} == {*made, other}
    assert {one["id"] for one in asking.get("/v3/groups?all_tenants=1").json["groups"]} == set(made)


def test_a_list_with_volumes(client: Client, group_type: str) -> None:
    group, empty = make(client), make(client)
    volume = member(client, group)
    found = client.at("3.31").get("/v3/groups/detail?list_volume=true").json["groups"]
    assert {one["id"]: one["volumes"] for one in found} == {group: [volume], empty: []}


def test_another_projects_group_is_not_there(client: Client, stranger: Client, admin: Client, group_type: str) -> None:
    group = make(client)
    asking = stranger.at("3.71")
    body = {"size": 1, "group_id": group, "volume_type": KIND}
    for method, path, data in (
        ("GET", f"/v3/groups/{group}", None), ("PUT", f"/v3/groups/{group}", {"group": {"name": "x"}}),
        ("POST", f"/v3/groups/{group}/action", {"delete": {}}), ("POST", "/v3/volumes", {"volume": body}),
        ("POST", f"/v3/groups/{group}/action", {"reset_status": {"status": "error"}}),
    ):  # fmt: skip
        assert asking.request(method, path, data).status_code == 404, (method, path)
    assert shown(admin, group)["name"] is None


def test_readers_read(client: Client, reader: Client, group_type: str) -> None:
    group = make(client)
    for method, path, data in (
        ("POST", "/v3/groups", {"group": {"group_type": "plain", "volume_types": [KIND]}}),
        ("PUT", f"/v3/groups/{group}", {"group": {"name": "x"}}),
        ("POST", f"/v3/groups/{group}/action", {"delete": {}}),
        ("POST", f"/v3/groups/{group}/action", {"enable_replication": {}}),
    ):  # fmt: skip
        assert reader.at("3.71").request(method, path, data).status_code == 403, (method, path)
    assert act(client, group, reset_status={"status": "error"}).status_code == 403


# -- who is in them


def test_volumes_are_made_in_a_group(client: Client, group_type: str) -> None:
    group, other = make(client), make(client)
    volume = member(client, group)
    outside = client.volume()["id"]
    assert inside(client, group) == [volume]
    assert client.at("3.13").get(f"/v3/volumes/{volume}").json["volume"]["group_id"] == group
    assert client.at("3.13").get(f"/v3/volumes/{outside}").json["volume"]["group_id"] is None
    assert "group_id" not in client.at("3.12").get(f"/v3/volumes/{volume}").json["volume"]
    for wanted, found in ((group, [volume]), (other, []), (UNKNOWN, [])):
        listed = client.at("3.31").get(f"/v3/volumes?group_id={wanted}").json["volumes"]
        assert [one["id"] for one in listed] == found
    assert len(client.at("3.9").get(f"/v3/volumes?group_id={group}").json["volumes"]) == 2


def test_a_volume_in_a_group_is_made_from_another(client: Client, group_type: str) -> None:
    group = make(client)
    source = client.volume()["id"]
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": source}}).json["snapshot"]["id"]
    made = [member(client, group, source_volid=source), member(client, group, snapshot_id=snapshot)]
    assert inside(client, group) == made


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"group_id": UNKNOWN}, 404),
        ({"group_id": "x"}, 400),
        ({"volume_type": None}, 400),
        ({"volume_type": "gold"}, 400),
    ],
)
def test_what_cannot_be_in_a_group(
    client: Client, admin: Client, group_type: str, fields: dict[str, Any], status: int
) -> None:
    admin.post("/v3/types", {"volume_type": {"name": "gold"}})
    group = make(client)
    body = {"size": 1, "group_id": group, "volume_type": KIND, **fields}
    assert client.at("3.13").post("/v3/volumes", {"volume": body}).status_code == status
    assert inside(client, group) == []


def test_volumes_join_and_leave(client: Client, group_type: str) -> None:
    group = make(client)
    one, two = client.volume()["id"], client.volume()["id"]
    path, asking = f"/v3/groups/{group}", client.at("3.13")
    answer = asking.put(path, {"group": {"add_volumes": f"{one},{two}"}})
    assert (answer.status_code, answer.text) == (202, "")
    assert inside(client, group) == [one, two]
    assert (
        asking.put(path, {"group": {"remove_volumes": f"{one},", "name": "n", "description": "d"}}).status_code == 202
    )
    assert inside(client, group) == [two]
    assert (shown(client, group)["name"], shown(client, group)["description"]) == ("n", "d")
    assert asking.put(path, {"group": {"add_volumes": f"{one},{two}"}}).status_code == 202
    assert inside(client, group) == [one, two]


def test_a_member_does_not_even_go_by_force(client: Client, admin: Client, group_type: str) -> None:
    group = make(client)
    mine = member(client, group)
    assert admin.post(f"/v3/volumes/{mine}/action", {"os-force_delete": {}}).status_code == 400
    assert inside(client, group) == [mine]
    assert delete(client, group, delete_volumes=True).status_code == 202


def test_who_cannot_join_or_leave(
    client: Client, admin: Client, stranger: Client, world: World, group_type: str
) -> None:
    admin.post("/v3/types", {"volume_type": {"name": "gold"}})
    group, other = make(client), make(client)
    mine, elsewhere = member(client, group), member(client, other)
    broken = client.volume()["id"]
    with world.db.write() as session:
        session.get_one(models.Volume, broken).status = "maintenance"
    refusals: list[dict[str, Any]] = [
        {}, {"name": None}, {"add_volumes": mine}, {"add_volumes": UNKNOWN}, {"add_volumes": elsewhere},
        {"add_volumes": client.volume(volume_type="gold")["id"]}, {"add_volumes": stranger.volume()["id"]},
        {"add_volumes": broken}, {"remove_volumes": elsewhere}, {"remove_volumes": UNKNOWN}, {"add_volumes": ","},
        {"add_volumes": mine, "remove_volumes": mine}, {"colour": "red"},
    ]  # fmt: skip
    for fields in refusals:
        answer = client.at("3.13").put(f"/v3/groups/{group}", {"group": fields})
        assert answer.status_code == 400, (fields, answer.text)
    assert inside(client, group) == [mine]
    stranger_volume = stranger.volume()["id"]
    assert admin.at("3.13").put(f"/v3/groups/{group}", {"group": {"add_volumes": stranger_volume}}).status_code == 400


def test_only_an_available_group_changes_its_volumes(client: Client, admin: Client, group_type: str) -> None:
    group = make(client)
    volume = client.volume()["id"]
    act(admin, group, reset_status={"status": "ERROR"})
    path = f"/v3/groups/{group}"
    assert client.at("3.13").put(path, {"group": {"add_volumes": volume}}).status_code == 400
    assert client.at("3.13").put(path, {"group": {"name": "still mine"}}).status_code == 202
    assert shown(client, group)["name"] == "still mine"


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"]}], indirect=True)
def test_a_groups_volumes_are_on_its_back_end(client: Client, admin: Client, group_type: str) -> None:
    for name, backend in (("slow", "ceph"), ("quick", "fast")):
        specs = {"volume_backend_name": backend}
        admin.post("/v3/types", {"volume_type": {"name": name, "extra_specs": specs}})
    assert shown(client, make(client, volume_types=["slow", "quick"]))["status"] == "error"
    group = make(client, volume_types=["quick", KIND])
    volume = client.at("3.13").volume(group_id=group, volume_type=KIND)["id"]
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["os-vol-host-attr:host"] == "testhost@fast#fast"
    elsewhere = client.volume(volume_type=KIND)["id"]
    assert client.at("3.13").put(f"/v3/groups/{group}", {"group": {"add_volumes": elsewhere}}).status_code == 400
    body = {"size": 1, "group_id": group, "volume_type": KIND, "source_volid": elsewhere}
    assert client.at("3.13").post("/v3/volumes", {"volume": body}).status_code == 400


def test_a_volume_in_a_group_cannot_go_alone(client: Client, admin: Client, group_type: str) -> None:
    volume = member(client, make(client))
    path = f"/v3/volumes/{volume}"
    admin.post("/v3/types", {"volume_type": {"name": "gold"}})
    assert client.delete(path).status_code == 400
    assert client.delete(f"{path}?cascade=true").status_code == 400
    actions: list[dict[str, Any]] = [
        {"os-retype": {"new_type": "gold", "migration_policy": "never"}}, {"os-unmanage": {}},
        {"os-migrate_volume": {"host": "testhost@ceph#ceph"}},
    ]  # fmt: skip
    for action in actions:
        assert admin.post(f"{path}/action", action).status_code == 400, action
    assert client.at("3.55").post("/v3/volume-transfers", {"transfer": {"volume_id": volume}}).status_code == 400
    assert client.get(path).json["volume"]["status"] == "available"


# -- their end


def test_an_empty_group_is_deleted(client: Client, group_type: str) -> None:
    group = make(client)
    answer = delete(client, group)
    assert (answer.status_code, answer.text) == (202, "")
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404
    assert delete(client, group).status_code == 404


def test_a_group_goes_with_its_volumes_only_if_asked(client: Client, cluster: FakeCluster, group_type: str) -> None:
    group = make(client)
    inner, outer = [member(client, group), member(client, group)], client.volume()["id"]
    assert delete(client, group).status_code == 400
    assert delete(client, group, delete_volumes="maybe").status_code == 400
    assert delete(client, group, delete_volumes=False).status_code == 400
    assert shown(client, group)["status"] == "available"
    assert delete(client, group, delete_volumes=True).status_code == 202
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404
    for volume in inner:
        assert client.get(f"/v3/volumes/{volume}").status_code == 404
    assert set(cluster.stored) == {f"volume-{outer}"}


def test_nothing_goes_while_one_volume_is_needed(
    client: Client, admin: Client, world: World, cluster: FakeCluster, group_type: str
) -> None:
    group = make(client)
    quiet, held = member(client, group), member(client, group)
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": held}}).json["snapshot"]["id"]
    assert delete(client, group, delete_volumes=True).status_code == 400
    client.delete(f"/v3/snapshots/{snapshot}")
    admin.post(f"/v3/volumes/{held}/action", {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}})
    assert delete(client, group, delete_volumes=True).status_code == 400
    admin.post(f"/v3/volumes/{held}/action", {"os-detach": {}})
    with world.db.write() as session:
        session.get_one(models.Volume, held).status = "maintenance"
    assert delete(client, group, delete_volumes=True).status_code == 400
    assert set(cluster.stored) == {f"volume-{quiet}", f"volume-{held}"}
    assert client.get(f"/v3/volumes/{quiet}").json["volume"]["status"] == "available"
    assert shown(client, group)["status"] == "available"


def test_a_volume_that_somebody_has_open_keeps_its_group(
    client: Client, world: World, cluster: FakeCluster, group_type: str
) -> None:
    group = make(client)
    volume, other = member(client, group), member(client, group)
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.7:0/123"]
    assert delete(client, group, delete_volumes=True).status_code == 202
    settle(world)
    assert shown(client, group)["status"] == "error_deleting"
    assert inside(client, group) == [volume]
    assert client.get(f"/v3/volumes/{other}").status_code == 404
    assert delete(client, group).status_code == 400
    body = {"size": 1, "group_id": group, "volume_type": KIND}
    assert client.at("3.13").post("/v3/volumes", {"volume": body}).status_code == 400
    cluster.watchers.clear()
    assert delete(client, group, delete_volumes=True).status_code == 202
    settle(world)
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404


def test_a_group_waits_for_volumes_whose_end_is_unknown(
    client: Client, world: World, cluster: FakeCluster, group_type: str
) -> None:
    group = make(client)
    member(client, group)
    cluster.stuck = True
    assert delete(client, group, delete_volumes=True).status_code == 202
    assert shown(client, group)["status"] == "deleting"
    assert delete(client, group, delete_volumes=True).status_code == 400
    cluster.release()
    settle(world)
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404
    assert cluster.stored == {}


def test_a_group_whose_process_was_killed_ends_all_the_same(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch, group_type: str
) -> None:
    group = make(client)
    member(client, group)
    with monkeypatch.context() as patched:
        # As if the process ended right after the commit that accepts.
        for machine in (groups.LIFECYCLE, volumes.LIFECYCLE):
            patched.setattr(machine, "run", lambda *_: None)
        assert delete(client, group, delete_volumes=True).status_code == 202
    assert shown(client, group)["status"] == "deleting"
    with world.db.write() as session:
        for table in (models.Group, models.Volume):
            session.execute(sqlalchemy.update(table).where(table.busy == 1).values(lease_owner=None))
    settle(world)
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404
    assert cluster_of(world).stored == {}


def test_nothing_begins_while_the_cluster_is_down(client: Client, cluster: FakeCluster, group_type: str) -> None:
    group = make(client)
    member(client, group)
    cluster.down = True
    assert delete(client, group, delete_volumes=True).status_code == 503
    cluster.down = False
    assert shown(client, group)["status"] == "available"


# -- by administrators


def test_a_status_is_set_by_hand(client: Client, admin: Client, group_type: str) -> None:
    group = make(client)
    for status in ("creating", "Available", "error", "error_deleting", "deleted", "updating", "deleting"):
        assert act(admin, group, version="3.20", reset_status={"status": status}).status_code == 202
        assert shown(client, group)["status"] == status.lower()
    for refused in ({"status": "in-use"}, {"status": ""}, {"status": None}, {}, {"status": "available", "x": 1}):
        assert act(admin, group, reset_status=refused).status_code == 400, refused
    assert act(admin, UNKNOWN, reset_status={"status": "error"}).status_code == 404
    # Whoever asks for the volumes to go need not care about the status.
    assert delete(client, group).status_code == 400
    assert delete(client, group, delete_volumes=True).status_code == 202


def test_no_group_is_replicated(client: Client, admin: Client, group_type: str) -> None:
    group = make(client)
    verbs = ("enable_replication", "disable_replication", "failover_replication", "list_replication_targets")
    for verb in verbs:
        answer = client.at("3.38").post(f"/v3/groups/{group}/action", {verb: {}})
        assert answer.status_code == 400
        assert answer.json["badRequest"]["message"].startswith("Invalid group type: ")
        assert client.at("3.38").post(f"/v3/groups/{group}/action", {verb: None}).status_code == 400
    specs = {"group_specs": {"consistent_group_replication_enabled": "<is> True"}}
    admin.at("3.11").post(f"/v3/group_types/{group_type}/group_specs", specs)
    for verb in verbs:
        answer = client.at("3.38").post(f"/v3/groups/{group}/action", {verb: {}})
        assert answer.json["badRequest"]["message"].startswith("Invalid volume type: ")
    fields = {"name": "remote", "extra_specs": {"replication_enabled": "<is> True"}}
    admin.post("/v3/types", {"volume_type": fields})
    group = make(client, volume_types=["remote"])
    for verb in verbs[:3]:
        answer = client.at("3.38").post(f"/v3/groups/{group}/action", {verb: {}})
        assert answer.json["badRequest"]["message"].startswith("Invalid Group: ")
    answer = act(client, group, list_replication_targets={})
    assert (answer.status_code, answer.json) == (200, {"replication_targets": []})
