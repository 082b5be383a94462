# SPDX-License-Identifier: Apache-2.0
"""Volume types, their extra specs, and who may use them."""

from __future__ import annotations

import concurrent.futures
import threading
import urllib.parse
from typing import Any

import pytest
from sqlalchemy import select

from cinderlite.api.policy import Policy
from cinderlite.context import Context, World
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, cluster_of, settle

PUBLIC = "os-volume-type-access:is_public"


def make(admin: Client, name: str = "gold", *, public: bool = True, **more: Any) -> str:
    """A new type's id."""
    answer = admin.post("/v3/types", {"volume_type": {"name": name, PUBLIC: public, **more}})
    assert answer.status_code == 200, answer.text
    return str(answer.json["volume_type"]["id"])


def names(client: Client, query: str = "") -> list[str]:
    """What a list holds, oldest first."""
    answer = client.get(f"/v3/types?sort=created_at:asc{query}")
    assert answer.status_code == 200, answer.text
    return [one["name"] for one in answer.json["volume_types"]]


def act(client: Client, kind: str, action: str, **body: Any) -> int:
    return int(client.post(f"/v3/types/{kind}/action", {action: body}).status_code)


# -- the types themselves


def test_a_type_is_made_shown_changed_and_deleted(admin: Client, client: Client) -> None:
    wanted = {"name": " gold ", "description": "fast", "extra_specs": {"volume_backend_name": "ceph"}}
    answer = admin.post("/v3/types", {"volume_type": wanted})
    made = answer.json["volume_type"]
    kind = f"/v3/types/{made['id']}"
    plain = {"name": "gold", "description": "fast", "is_public": True, "extra_specs": wanted["extra_specs"]}
    assert (answer.status_code, made) == (200, {"id": made["id"], PUBLIC: True, **plain})
    shown = {"id": made["id"], PUBLIC: True, "qos_specs_id": None, **plain}
    assert admin.get(kind).json == {"volume_type": shown}
    assert admin.get("/v3/types").json["volume_types"][0] == shown
    assert client.volume(volume_type="gold")["volume_type"] == "gold"
    answer = admin.put(kind, {"volume_type": {"name": "golden", "description": "", "is_public": False}})
    changed = {"name": "golden", "description": "", "is_public": False}
    assert (answer.status_code, answer.json["volume_type"]) == (200, {"id": made["id"], **plain, **changed})
    assert admin.get(kind).json["volume_type"] == {**shown, **changed, PUBLIC: False}
    spare = make(admin, "spare")
    answer = admin.delete(f"/v3/types/{spare}")
    assert (answer.status_code, answer.text) == (202, "")
    assert admin.get(f"/v3/types/{spare}").status_code == 404
    assert admin.delete(f"/v3/types/{spare}").status_code == 404


def test_only_what_is_given_changes(admin: Client) -> None:
    kind = make(admin, description="fast", public=False)
    admin.put(f"/v3/types/{kind}", {"volume_type": {"name": "golden", "description": None}})
    found = admin.get(f"/v3/types/{kind}").json["volume_type"]
    assert (found["name"], found["description"], found["is_public"]) == ("golden", "fast", False)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"volume_type": {}}, 400),
        ({"volume_type": {"name": None}}, 400),
        ({"volume_type": {"name": " "}}, 400),
        ({"volume_type": {"name": "x" * 256}}, 400),
        ({"volume_type": {"name": "x", "description": "x" * 256}}, 400),
        ({"volume_type": {"name": "x", PUBLIC: "perhaps"}}, 400),
        ({"volume_type": {"name": "x", "is_public": True}}, 400),
        ({"volume_type": {"name": "x", "more": 1}}, 400),
        ({"volume_type": {"name": "x", "extra_specs": {"k": 1}}}, 400),
        ({"volume_type": {"name": "x", "extra_specs": {"": "v"}}}, 400),
        ({"volume_type": {"name": "gold"}}, 409),
        ({"volume_type": {"name": "__DEFAULT__"}}, 409),
    ],
)
def test_a_type_that_cannot_be_is_refused(admin: Client, body: dict[str, Any], status: int) -> None:
    make(admin)
    assert admin.post("/v3/types", body).status_code == status
    assert names(admin) == ["__DEFAULT__", "gold"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 400),
        ({"name": None}, 400),
        ({"name": ""}, 400),
        ({"name": "x" * 256}, 400),
        ({"is_public": "perhaps"}, 400),
        ({"more": 1}, 400),
        ({"name": "silver"}, 409),
    ],
)
def test_a_change_that_cannot_be_is_refused(admin: Client, change: dict[str, Any], status: int) -> None:
    kind = make(admin)
    make(admin, "silver")
    assert admin.put(f"/v3/types/{kind}", {"volume_type": change}).status_code == status
    assert names(admin) == ["__DEFAULT__", "gold", "silver"]


def test_only_administrators_change_types(admin: Client, client: Client, reader: Client) -> None:
    kind = make(admin, extra_specs={"k": "v"})
    one = f"/v3/types/{kind}"
    for caller in (client, reader):
        for method, path, body in (
            ("POST", "/v3/types", {"volume_type": {"name": "x"}}),
            ("PUT", one, {"volume_type": {"name": "x"}}),
            ("DELETE", one, None),
            ("POST", one + "/extra_specs", {"extra_specs": {"k": "w"}}),
            ("PUT", one + "/extra_specs/k", {"k": "w"}),
            ("DELETE", one + "/extra_specs/k", None),
            ("GET", one + "/os-volume-type-access", None),
            ("POST", one + "/action", {"addProjectAccess": {"project": PROJECT}}),
            ("POST", one + "/action", {"removeProjectAccess": {"project": PROJECT}}),
        ):
            assert caller.request(method, path, body).status_code == 403, (method, path)
    assert admin.get(one).json["volume_type"]["extra_specs"] == {"k": "v"}


def test_a_type_that_is_needed_stays(admin: Client, client: Client, world: World) -> None:
    kind = make(admin)
    one = f"/v3/types/{kind}"
    volume = client.volume(volume_type="gold")["id"]
    answer = admin.delete(one)
    assert (answer.status_code, "in use" in answer.text) == (400, True)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    with world.db.write() as session:
        session.add(models.DefaultType(project_id=OTHER, volume_type_id=kind))
    answer = admin.delete(one)
    assert (answer.status_code, "default" in answer.text) == (400, True)
    default = admin.get("/v3/types/default").json["volume_type"]["id"]
    assert admin.delete(f"/v3/types/{default}").status_code == 400
    assert names(admin) == ["__DEFAULT__", "gold"]


def test_a_type_that_a_group_has_stays(admin: Client) -> None:
    kind, root = make(admin), admin.at("3.13")
    admin.at("3.11").post("/v3/group_types", {"group_type": {"name": "together"}})
    wanted = {"group": {"group_type": "together", "volume_types": [kind]}}
    answer = root.post("/v3/groups", wanted)
    assert answer.status_code == 202, answer.text
    assert admin.delete(f"/v3/types/{kind}").status_code == 400
    group = f"/v3/groups/{answer.json['group']['id']}"
    assert root.post(group + "/action", {"delete": {"delete-volumes": False}}).status_code == 202
    assert admin.delete(f"/v3/types/{kind}").status_code == 202


def test_a_type_whose_volumes_are_gone_goes_even_before_their_purge(
    admin: Client, client: Client, world: World
) -> None:
    kind = make(admin)
    volume = client.volume(volume_type="gold")["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert cluster_of(world).images("") == set()
    assert admin.delete(f"/v3/types/{kind}").status_code == 202
    settle(world)  # The purge of the volume does not need its type.
    with world.db.read() as session:
        assert session.scalar(select(models.Volume.id).where(models.Volume.busy == 1)) is None


def test_without_the_configured_default_type_volumes_need_one(admin: Client, client: Client, world: World) -> None:
    default = admin.get("/v3/types/default").json["volume_type"]["id"]
    assert admin.put(f"/v3/types/{default}", {"volume_type": {"name": "other"}}).status_code == 200
    assert client.get("/v3/types/default").status_code == 404
    answer = client.post("/v3/volumes", {"volume": {"size": 1}})
    assert (answer.status_code, list(answer.json)) == (500, ["computeFault"])
    assert client.volume(volume_type="other")["volume_type"] == "other"
    assert len(cluster_of(world).images("")) == 1


def test_a_name_that_is_another_types_id_is_the_others(admin: Client, client: Client) -> None:
    gold = make(admin)
    make(admin, gold)
    assert client.at("3.63").volume(volume_type=gold)["volume_type_id"] == gold


def test_of_a_delete_and_volumes_being_made_either_comes_first(admin: Client, client: Client, world: World) -> None:
    kind = make(admin)
    gate = threading.Barrier(4)

    def ask(request: Any) -> int:
        gate.wait(10)
        return int(request().status_code)

    wanted = {"volume": {"size": 1, "volume_type": "gold"}}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        makers = [pool.submit(ask, lambda: client.post("/v3/volumes", wanted)) for _ in range(3)]
        deleted = pool.submit(ask, lambda: admin.delete(f"/v3/types/{kind}")).result()
        made = [maker.result() for maker in makers]
    left = client.get("/v3/volumes/detail").json["volumes"]
    assert len(left) == made.count(202)
    assert set(made) <= {202, 404}
    assert {one["volume_type"] for one in left} == ({"gold"} if deleted == 400 else set())
    assert ("gold" in names(admin)) == (deleted == 400)


# -- lists


def test_lists_are_paged_and_sorted(admin: Client, client: Client) -> None:
    for name in ("c", "a", "b"):
        make(admin, name)
    found: list[str] = []
    links = [{"href": "/v3/types?limit=2&sort=name:asc"}]
    while links:
        answer = client.get(links[0]["href"]).json
        found += [one["name"] for one in answer["volume_types"]]
        links = answer.get("volume_type_links", [])
    assert found == ["__DEFAULT__", "a", "b", "c"]
    assert client.get("/v3/types?sort=color:asc").status_code == 400
    assert client.get(f"/v3/types?marker={PROJECT}").status_code == 404


def test_who_sees_which_types(admin: Client, client: Client, stranger: Client) -> None:
    make(admin, "all")
    kind = make(admin, "ours", public=False)
    make(admin, "nobodys", public=False)
    assert act(admin, kind, "addProjectAccess", project=PROJECT) == 202
    assert names(client) == ["__DEFAULT__", "all", "ours"]
    assert names(client, "&is_public=none") == names(client, "&is_public=false") == names(client)
    assert names(stranger) == ["__DEFAULT__", "all"]
    assert names(admin) == ["__DEFAULT__", "all", "ours"]
    assert names(admin, "&is_public=None") == ["__DEFAULT__", "all", "ours", "nobodys"]
    assert names(admin, "&is_public=false") == ["ours", "nobodys"]
    assert admin.get("/v3/types?is_public=perhaps").status_code == 400


def test_the_filter_by_extra_specs(admin: Client, client: Client) -> None:
    make(admin, "shared", extra_specs={"multiattach": "<is> True", "RESKEY:availability_zones": "north,south"})
    make(admin, "secret", extra_specs={"volume_backend_name": "ceph"})

    def found(caller: Client, specs: dict[str, str], version: str = "3.52") -> list[str]:
        return names(caller.at(version), f"&extra_specs={urllib.parse.quote(str(specs))}")

    assert found(client, {"multiattach": "<is> True"}) == ["shared"]
    assert found(client, {"RESKEY:availability_zones": "south"}) == ["shared"]
    assert found(client, {"multiattach": "<is> True", "RESKEY:availability_zones": "west"}) == []
    assert found(client, {"volume_backend_name": "ceph"}) == []
    assert found(admin, {"volume_backend_name": "ceph"}) == ["secret"]
    assert len(found(client, {"multiattach": "<is> True"}, "3.51")) == 3
    assert client.at("3.52").get("/v3/types?extra_specs=multiattach").status_code == 400
    assert client.at("3.52").get("/v3/types?color=red").status_code == 400
    assert client.at("3.51").get("/v3/types?color=red").status_code == 200


# -- extra specs


def test_a_type_is_not_cacheable_and_for_several_servers(admin: Client) -> None:
    specs = f"/v3/types/{make(admin, extra_specs={'multiattach': '<is> True'})}/extra_specs"
    cacheable = {"cacheable": "<is> True"}
    assert admin.post(specs, {"extra_specs": cacheable}).status_code == 400
    assert admin.post(specs, {"extra_specs": {**cacheable, "multiattach": "<is> False"}}).status_code == 200
    assert admin.post(specs, {"extra_specs": {"multiattach": "<is> True"}}).status_code == 400
    assert admin.get(specs).json["extra_specs"] == {**cacheable, "multiattach": "<is> False"}


def test_extra_specs_are_added_replaced_and_removed(admin: Client) -> None:
    specs = f"/v3/types/{make(admin, extra_specs={'a': '1'})}/extra_specs"
    answer = admin.post(specs, {"extra_specs": {"b": "2", "a": "3"}})
    assert (answer.status_code, answer.json) == (200, {"extra_specs": {"b": "2", "a": "3"}})
    assert admin.post(specs, {"extra_specs": {"c": "4"}}).json == {"extra_specs": {"c": "4"}}
    assert admin.get(specs).json == {"extra_specs": {"a": "3", "b": "2", "c": "4"}}
    answer = admin.put(specs + "/b", {"b": "5"})
    assert (answer.status_code, answer.json) == (200, {"b": "5"})
    assert admin.get(specs + "/b").json == {"b": "5"}
    assert admin.put(specs + "/new", {"new": "6"}).status_code == 200
    answer = admin.delete(specs + "/a")
    assert (answer.status_code, answer.text) == (202, "")
    assert admin.get(specs).json == {"extra_specs": {"b": "5", "c": "4", "new": "6"}}
    assert admin.get(specs + "/a").status_code == admin.delete(specs + "/a").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "", {}),
        ("POST", "", {"extra_specs": {"a b": "1"}}),
        ("POST", "", {"extra_specs": {"a/b": "1"}}),
        ("POST", "", {"extra_specs": {"": "1"}}),
        ("POST", "", {"extra_specs": {"a": None}}),
        ("POST", "", {"extra_specs": {"a": "x" * 256}}),
        ("POST", "", {"extra_specs": {"x" * 256: "1"}}),
        ("POST", "", {"extra_specs": {"a": "1"}, "more": 1}),
        ("PUT", "/a", {}),
        ("PUT", "/a", {"b": "1"}),
        ("PUT", "/a", {"a": "1", "b": "1"}),
        ("PUT", "/a", {"a": 1}),
    ],
)
def test_extra_specs_that_cannot_be_are_refused(admin: Client, method: str, path: str, body: dict[str, Any]) -> None:
    specs = f"/v3/types/{make(admin, extra_specs={'k': 'v'})}/extra_specs"
    assert admin.request(method, specs + path, body).status_code == 400
    assert admin.get(specs).json == {"extra_specs": {"k": "v"}}


def test_what_volumes_have_does_not_change_its_meaning(admin: Client, client: Client) -> None:
    specs = f"/v3/types/{make(admin, extra_specs={'k': 'v'})}/extra_specs"
    volume = client.volume(volume_type="gold")["id"]
    assert admin.post(specs, {"extra_specs": {"a": "1"}}).status_code == 400
    assert admin.put(specs + "/k", {"k": "w"}).status_code == 400
    assert admin.delete(specs + "/k").status_code == 400
    assert admin.get(specs).json == {"extra_specs": {"k": "v"}}
    client.delete(f"/v3/volumes/{volume}")
    assert admin.put(specs + "/k", {"k": "w"}).status_code == 200


def test_tenants_see_the_extra_specs_meant_for_them(admin: Client, client: Client, reader: Client) -> None:
    shared = {"multiattach": "<is> True", "RESKEY:availability_zones": "nova", "replication_enabled": "<is> False"}
    kind = f"/v3/types/{make(admin, extra_specs={'volume_backend_name': 'ceph', **shared})}"
    for caller in (client, reader):
        found = caller.get(kind).json["volume_type"]
        assert (found["extra_specs"], "qos_specs_id" in found) == (shared, False)
        assert caller.get("/v3/types").json["volume_types"][0]["extra_specs"] == shared
        assert caller.get(kind + "/extra_specs").json["extra_specs"] == shared
        assert caller.get(kind + "/extra_specs/multiattach").json == {"multiattach": "<is> True"}
        assert caller.get(kind + "/extra_specs/volume_backend_name").status_code == 404
    assert PUBLIC in client.get(kind).json["volume_type"]
    assert PUBLIC not in reader.get(kind).json["volume_type"]
    assert admin.get(kind + "/extra_specs/volume_backend_name").json == {"volume_backend_name": "ceph"}


def test_a_type_for_several_servers_makes_volumes_for_several(admin: Client, client: Client) -> None:
    make(admin, extra_specs={"multiattach": "<is> True"})
    assert client.volume(volume_type="gold")["multiattach"] is True
    assert client.volume()["multiattach"] is False


def test_who_may_have_volumes_for_several_servers(
    admin: Client, client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(admin, extra_specs={"multiattach": "<is> True"})
    allows = Policy.allows

    def without(self: Policy, ctx: Context, rule: str, target: Any) -> bool:
        """As an operator's policy file may say."""
        return (rule != "volume:multiattach" or ctx.is_admin) and allows(self, ctx, rule, target)

    shared = client.volume(volume_type="gold")["id"]
    plain = client.volume()["id"]
    monkeypatch.setattr(Policy, "allows", without)
    assert client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}}).status_code == 403
    assert client.post("/v3/volumes", {"volume": {"source_volid": shared}}).status_code == 403
    for volume, kind in ((plain, "gold"), (shared, "__DEFAULT__")):
        retype = {"os-retype": {"new_type": kind, "migration_policy": "never"}}
        assert client.post(f"/v3/volumes/{volume}/action", retype).status_code == 403
        assert admin.post(f"/v3/volumes/{volume}/action", retype).status_code == 202
    assert cluster_of(world).images("") == {f"volume-{plain}", f"volume-{shared}"}
    assert admin.volume(volume_type="gold")["multiattach"] is True
    assert client.volume()["multiattach"] is False


# -- access


def test_a_private_type_is_for_those_who_were_given_it(admin: Client, client: Client, stranger: Client) -> None:
    kind = make(admin, public=False)
    one, wanted = f"/v3/types/{kind}", {"volume": {"size": 1, "volume_type": "gold"}}
    for caller in (client, stranger):
        assert caller.get(one).status_code == 404
        assert caller.get(one + "/extra_specs").status_code == 404
        assert caller.post("/v3/volumes", wanted).status_code == 404
    assert act(admin, kind, "addProjectAccess", project=PROJECT) == 202
    given = [{"volume_type_id": kind, "project_id": PROJECT}]
    assert admin.get(one + "/os-volume-type-access").json == {"volume_type_access": given}
    assert act(admin, kind, "addProjectAccess", project=PROJECT) == 409
    assert client.get(one).status_code == 200
    volume = client.volume(volume_type="gold")["id"]
    plain = stranger.volume()["id"]
    assert stranger.get(one).status_code == 404
    retype = {"os-retype": {"new_type": "gold", "migration_policy": "never"}}
    assert stranger.post(f"/v3/volumes/{plain}/action", retype).status_code == 404
    assert act(admin, kind, "removeProjectAccess", project=OTHER) == 404
    assert act(admin, kind, "removeProjectAccess", project=PROJECT) == 202
    assert admin.get(one + "/os-volume-type-access").json == {"volume_type_access": []}
    assert client.post("/v3/volumes", wanted).status_code == 404
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["volume_type"] == "gold"
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202


def test_a_public_type_is_nobodys(admin: Client) -> None:
    kind = make(admin)
    assert admin.get(f"/v3/types/{kind}/os-volume-type-access").status_code == 404
    assert act(admin, kind, "addProjectAccess", project=PROJECT) == 400
    assert act(admin, kind, "removeProjectAccess", project=PROJECT) == 400
    assert act(admin, kind, "addProjectAccess") == 400
    assert act(admin, kind, "addProjectAccess", project="") == 400
    assert act(admin, kind, "addProjectAccess", project=PROJECT, more=1) == 400


# -- what hangs on a type's name and volumes


def test_a_renamed_type_keeps_its_quota(admin: Client, client: Client, world: World) -> None:
    kind = make(admin)
    with world.db.write() as session:
        session.add(models.Quota(project_id=PROJECT, resource="volumes_gold", limit=0))
    assert client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}}).status_code == 413
    admin.put(f"/v3/types/{kind}", {"volume_type": {"name": "golden"}})
    assert client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "golden"}}).status_code == 413
    admin.delete(f"/v3/types/{kind}")
    make(admin, "golden")
    assert client.volume(volume_type="golden")["status"] == "available"


def test_snapshots_count_for_the_type_their_volume_has_now(admin: Client, client: Client, world: World) -> None:
    make(admin)
    with world.db.write() as session:
        session.add(models.Quota(project_id=PROJECT, resource="snapshots_gold", limit=1))
    volume = client.volume()["id"]
    client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    retype = {"os-retype": {"new_type": "gold", "migration_policy": "never"}}
    assert client.post(f"/v3/volumes/{volume}/action", retype).status_code == 202
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 413


def test_a_volume_for_which_there_is_no_place_fails_with_a_message(admin: Client, client: Client, world: World) -> None:
    make(admin, "strange", extra_specs={"storage_protocol": "iSCSI"})
    made = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "strange"}})
    assert (made.status_code, made.json["volume"]["status"]) == (202, "creating")
    volume = f"/v3/volumes/{made.json['volume']['id']}"
    assert client.get(volume).json["volume"]["status"] == "error"
    [message] = client.at("3.3").get("/v3/messages").json["messages"]
    assert message["event_id"] == "VOLUME_VOLUME_001_003"
    assert message["resource_uuid"] == made.json["volume"]["id"]
    assert cluster_of(world).images("") == set()
    assert client.delete(volume).status_code == 202
    assert client.get(volume).status_code == 404
