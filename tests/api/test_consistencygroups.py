# SPDX-License-Identifier: Apache-2.0
"""Consistency groups and their snapshots: groups of a reserved type, under older words."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from api.test_group_snapshots import held, letters, write
from cinderlite.context import World
from conftest import Client, settle
from fakes_cluster import FakeCluster

UNKNOWN = str(uuid.UUID(int=0))
KIND = "__DEFAULT__"


def make(client: Client, **fields: Any) -> str:
    body = {"consistencygroup": {"volume_types": KIND, **fields}}
    answer = client.post("/v3/consistencygroups", body)
    assert answer.status_code == 202, answer.text
    assert set(answer.json["consistencygroup"]) == {"id", "name"}
    return str(answer.json["consistencygroup"]["id"])


def shown(client: Client, group: str) -> dict[str, Any]:
    answer = client.get(f"/v3/consistencygroups/{group}")
    assert answer.status_code == 200, answer.text
    return answer.json["consistencygroup"]  # type: ignore[no-any-return]


def member(client: Client, group: str) -> dict[str, Any]:
    return client.volume(consistencygroup_id=group, volume_type=KIND)


def take(client: Client, group: str, **fields: Any) -> str:
    answer = client.post("/v3/cgsnapshots", {"cgsnapshot": {"consistencygroup_id": group, **fields}})
    assert answer.status_code == 202, answer.text
    assert set(answer.json["cgsnapshot"]) == {"id", "name"}
    return str(answer.json["cgsnapshot"]["id"])


def test_a_consistency_group_lives_and_ends(client: Client, reader: Client, world: World) -> None:
    default = client.get("/v3/types/default").json["volume_type"]["id"]
    group = make(client, name="cg", description="d", volume_types=f"{KIND},{default},")
    one = shown(reader, group)
    assert one.pop("created_at")
    assert one == {
        "id": group, "name": "cg", "description": "d", "status": "available", "availability_zone": "nova",
        "volume_types": [default],
    }  # fmt: skip
    assert client.get("/v3/consistencygroups").json == {"consistencygroups": [{"id": group, "name": "cg"}]}
    assert client.get("/v3/consistencygroups/detail?limit=1").json["consistencygroups"][0]["status"] == "available"
    volume = member(client, group)
    assert volume["consistencygroup_id"] == group
    assert client.at("3.13").get(f"/v3/volumes/{volume['id']}").json["volume"]["group_id"] == group
    assert client.volume()["consistencygroup_id"] is None
    path = f"/v3/consistencygroups/{group}/delete"
    assert client.post(path).status_code == 400
    assert client.post(path, {"consistencygroup": {"force": False}}).status_code == 400
    assert client.post(path, {"consistencygroup": {"force": "maybe"}}).status_code == 400
    assert client.post(path, {"consistencygroup": {"force": True}}).status_code == 202
    settle(world)
    assert client.get(f"/v3/consistencygroups/{group}").status_code == 404
    assert client.get(f"/v3/volumes/{volume['id']}").status_code == 404


def test_an_empty_one_needs_no_body_to_end(client: Client) -> None:
    group = make(client)
    assert client.post(f"/v3/consistencygroups/{group}/delete").status_code == 202
    assert client.get("/v3/consistencygroups").json == {"consistencygroups": []}


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"volume_types": None}, 400), ({"volume_types": ""}, 400), ({"volume_types": ","}, 400),
     ({"volume_types": "nope"}, 404), ({"volume_types": [KIND]}, 400), ({"availability_zone": "mars"}, 400)],
)  # fmt: skip
def test_what_it_cannot_be(client: Client, fields: dict[str, Any], status: int) -> None:
    body = {"consistencygroup": {"volume_types": KIND, **fields}}
    assert client.post("/v3/consistencygroups", body).status_code == status
    assert client.post("/v3/consistencygroups", {"consistencygroup": {}}).status_code == 400


@pytest.mark.parametrize("word", ["/update", ""])
def test_it_is_changed(client: Client, word: str) -> None:
    group, volume = make(client, name="cg"), client.volume()["id"]
    path = f"/v3/consistencygroups/{group}{word}"

    def update(version: str = "3.0", **fields: Any) -> int:
        return int(client.at(version).put(path, {"consistencygroup": fields}).status_code)

    assert update(add_volumes=volume, name="new") == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["consistencygroup_id"] == group
    assert update(remove_volumes=volume) == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["consistencygroup_id"] is None
    assert update() == update(name="", description=None) == update("3.6", name=None) == 400
    assert update("3.6", name="") == 202
    assert shown(client, group)["name"] == ""
    assert update(remove_volumes=volume) == update(add_volumes=UNKNOWN) == 400


def test_the_two_apis_do_not_show_each_others(client: Client, admin: Client) -> None:
    admin.at("3.11").post("/v3/group_types", {"group_type": {"name": "plain"}})
    body = {"group": {"group_type": "plain", "volume_types": [KIND]}}
    group = client.at("3.13").post("/v3/groups", body).json["group"]["id"]
    consistent = make(client)
    member(client, consistent)
    snapshot = take(client, consistent)
    newer = client.at("3.71")
    assert [one["id"] for one in newer.get("/v3/groups").json["groups"]] == [group]
    assert [one["id"] for one in client.get("/v3/consistencygroups").json["consistencygroups"]] == [consistent]
    assert newer.get("/v3/group_snapshots").json == {"group_snapshots": []}
    for method, path, data in (
        ("GET", f"/v3/groups/{consistent}", None), ("PUT", f"/v3/groups/{consistent}", {"group": {"name": "x"}}),
        ("POST", f"/v3/groups/{consistent}/action", {"delete": {}}), ("GET", f"/v3/group_snapshots/{snapshot}", None),
        ("DELETE", f"/v3/group_snapshots/{snapshot}", None),
        ("POST", "/v3/group_snapshots", {"group_snapshot": {"group_id": consistent}}),
        ("POST", "/v3/groups/action", {"create-from-src": {"source_group_id": consistent}}),
        ("POST", "/v3/groups/action", {"create-from-src": {"group_snapshot_id": snapshot}}),
    ):  # fmt: skip
        assert newer.request(method, path, data).status_code == 400, (method, path)
    source = {"consistencygroup-from-src": {"source_cgid": group}}
    for method, path, data in (
        ("GET", f"/v3/consistencygroups/{group}", None), ("POST", f"/v3/consistencygroups/{group}/delete", None),
        ("POST", "/v3/consistencygroups/create_from_src", source),
        ("POST", "/v3/cgsnapshots", {"cgsnapshot": {"consistencygroup_id": group}}),
    ):  # fmt: skip
        assert newer.request(method, path, data).status_code == 404, (method, path)


def test_snapshots_of_it(client: Client, reader: Client, cluster: FakeCluster) -> None:
    group = make(client)
    members = [member(client, group)["id"] for _ in range(2)]
    made = [take(client, group, name=name) for name in "ab"]
    one = reader.get(f"/v3/cgsnapshots/{made[0]}").json["cgsnapshot"]
    assert one.pop("created_at")
    assert one == {
        "id": made[0], "name": "a", "description": None, "status": "available", "consistencygroup_id": group,
    }  # fmt: skip
    assert client.get("/v3/cgsnapshots").json == {
        "cgsnapshots": [{"id": made[1], "name": "b"}, {"id": made[0], "name": "a"}]}  # fmt: skip
    assert client.get("/v3/cgsnapshots?limit=1").json == {"cgsnapshots": [{"id": made[1], "name": "b"}]}
    assert client.get("/v3/cgsnapshots/detail?offset=1").json["cgsnapshots"][0]["id"] == made[0]
    assert {one["volume_id"] for one in client.get("/v3/snapshots").json["snapshots"]} == set(members)
    for snapshot in made:
        assert client.delete(f"/v3/cgsnapshots/{snapshot}").status_code == 202
        assert client.get(f"/v3/cgsnapshots/{snapshot}").status_code == 404
    assert held(cluster) == set()


def test_one_from_another(client: Client, cluster: FakeCluster) -> None:
    group = make(client)
    volume = member(client, group)["id"]
    write(cluster, volume, "first")
    snapshot = take(client, group)
    write(cluster, volume, "second")

    def from_(**fields: Any) -> Any:
        return client.post("/v3/consistencygroups/create_from_src", {"consistencygroup-from-src": fields})

    for source, text in (({"cgsnapshot_id": snapshot}, "first"), ({"source_cgid": group}, "second")):
        answer = from_(name="copy", **source)
        assert answer.status_code == 202, answer.text
        made = answer.json["consistencygroup"]
        assert made["name"] == "copy"
        assert shown(client, made["id"])["status"] == "available"
        [copied] = [
            one["id"] for one in client.get("/v3/volumes/detail").json["volumes"]
            if one["consistencygroup_id"] == made["id"]
        ]  # fmt: skip
        assert letters(cluster, copied) == text
    both = {"cgsnapshot_id": snapshot, "source_cgid": group}
    assert from_().status_code == from_(**both).status_code == 400
    assert from_(source_cgid=UNKNOWN).status_code == from_(cgsnapshot_id=UNKNOWN).status_code == 404


def test_strangers_and_readers(client: Client, stranger: Client, reader: Client) -> None:
    group = make(client)
    member(client, group)
    snapshot = take(client, group)
    update = {"consistencygroup": {"name": "x"}}
    for method, path, data in (
        ("POST", f"/v3/consistencygroups/{group}/delete", None), ("DELETE", f"/v3/cgsnapshots/{snapshot}", None),
        ("PUT", f"/v3/consistencygroups/{group}/update", update), ("PUT", f"/v3/consistencygroups/{group}", update),
    ):  # fmt: skip
        assert stranger.request(method, path, data).status_code == 404
        assert reader.request(method, path, data).status_code == 403
    assert stranger.get(f"/v3/cgsnapshots/{snapshot}").status_code == 404
    assert stranger.get("/v3/consistencygroups").json == {"consistencygroups": []}
    assert stranger.get("/v3/cgsnapshots").json == {"cgsnapshots": []}
    assert reader.post("/v3/consistencygroups", {"consistencygroup": {"volume_types": KIND}}).status_code == 403
    assert reader.post("/v3/cgsnapshots", {"cgsnapshot": {"consistencygroup_id": group}}).status_code == 403
