# SPDX-License-Identifier: Apache-2.0
"""Group types and their specs, from outside."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from cinderlite.core import group_types
from conftest import Client

UNKNOWN = str(uuid.UUID(int=0))


def make(admin: Client, **fields: Any) -> dict[str, Any]:
    answer = admin.at("3.11").post("/v3/group_types", {"group_type": {"name": "together", **fields}})
    assert answer.status_code == 202, answer.text
    return answer.json["group_type"]  # type: ignore[no-any-return]


def names(client: Client, query: str = "") -> list[str]:
    answer = client.at("3.11").get(f"/v3/group_types?sort=name:asc{query}")
    assert answer.status_code == 200, answer.text
    return [one["name"] for one in answer.json["group_types"]]


def test_an_administrator_makes_types_and_members_see_them(client: Client, admin: Client, stranger: Client) -> None:
    made = make(admin, description="d", group_specs={"a": "1", "b": None})
    assert made == {
        "id": made["id"], "name": "together", "description": "d", "is_public": True,
        "group_specs": {"a": "1", "b": None},
    }  # fmt: skip
    path = f"/v3/group_types/{made['id']}"
    assert admin.at("3.71").get(path).json["group_type"] == made
    for one in (client, stranger):
        shown = one.at("3.11").get(path).json["group_type"]
        assert shown == {key: made[key] for key in ("id", "name", "description", "is_public")}


def test_only_administrators_change_types(client: Client, admin: Client) -> None:
    path = f"/v3/group_types/{make(admin, group_specs={'a': '1'})['id']}"
    asking = client.at("3.11")
    for method, where, body in (
        ("POST", "/v3/group_types", {"group_type": {"name": "x"}}), ("PUT", path, {"group_type": {"name": "x"}}),
        ("DELETE", path, None), ("GET", f"{path}/group_specs", None), ("GET", f"{path}/group_specs/a", None),
        ("POST", f"{path}/group_specs", {"group_specs": {"a": "2"}}), ("PUT", f"{path}/group_specs/a", {"a": "2"}),
        ("DELETE", f"{path}/group_specs/a", None),
    ):  # fmt: skip
        assert asking.request(method, where, body).status_code == 403, (method, where)
    assert admin.at("3.11").get(path).json["group_type"]["group_specs"] == {"a": "1"}


def test_types_are_of_3_11(admin: Client) -> None:
    made = make(admin)["id"]
    for path in ("/v3/group_types", "/v3/group_types/default", f"/v3/group_types/{made}"):
        assert admin.at("3.10").get(path).status_code == 404
    assert admin.at("3.11").get(f"/v3/group_types/{made}").status_code == 200


def test_a_private_type_is_the_administrators_alone(client: Client, admin: Client) -> None:
    made = make(admin, name="hidden", is_public=False)["id"]
    reserved = group_types.RESERVED
    assert client.at("3.11").get(f"/v3/group_types/{made}").status_code == 404
    assert names(client) == names(client, "&is_public=False") == [reserved]
    assert names(admin) == [reserved]
    assert names(admin, "&is_public=False") == ["hidden"]
    assert names(admin, "&is_public=None") == [reserved, "hidden"]
    assert admin.at("3.11").get("/v3/group_types?is_public=perhaps").status_code == 400


def test_pages_of_types(client: Client, admin: Client) -> None:
    for name in ("a", "b"):
        make(admin, name=name)
    page = client.at("3.11").get("/v3/group_types?limit=2&sort=name:asc").json
    assert [one["name"] for one in page["group_types"]] == ["a", "b"]
    [link] = page["group_type_links"]
    assert link["rel"] == "next"
    rest = client.at("3.11").get(link["href"].removeprefix("http://localhost")).json
    assert [one["name"] for one in rest["group_types"]] == [group_types.RESERVED]
    assert client.at("3.11").get(f"/v3/group_types?marker={UNKNOWN}").status_code == 404
    assert client.at("3.71").get("/v3/group_types?whatever=1").status_code == 200


def test_names_of_types_are_unique(admin: Client) -> None:
    make(admin)
    other = make(admin, name="other")["id"]
    asking = admin.at("3.11")
    again = asking.post("/v3/group_types", {"group_type": {"name": "together"}})
    assert again.status_code == 409
    assert "together" in again.json["conflictingRequest"]["message"]
    assert asking.put(f"/v3/group_types/{other}", {"group_type": {"name": "together"}}).status_code == 409


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": ""}, {"name": "  "}, {"name": None}, {"name": "x" * 256}, {"name": "x", "is_public": "perhaps"},
     {"name": "x", "group_specs": {"a b": "1"}}, {"name": "x", "group_specs": {"a": 1}}, {"name": "x", "colour": "red"},
     {"name": "x", "group_specs": {"a": "x" * 256}}, {"name": "x", "description": "x" * 256}],
)  # fmt: skip
def test_what_a_type_cannot_be(admin: Client, fields: dict[str, Any]) -> None:
    assert admin.at("3.11").post("/v3/group_types", {"group_type": fields}).status_code == 400


def test_a_type_is_changed(admin: Client) -> None:
    made = make(admin, description="d")
    path, asking = f"/v3/group_types/{made['id']}", admin.at("3.11")
    answer = asking.put(path, {"group_type": {"name": "new", "is_public": False}})
    assert answer.status_code == 200
    assert answer.json["group_type"] == {**made, "name": "new", "is_public": False}
    assert asking.put(path, {"group_type": {"description": ""}}).json["group_type"]["description"] == ""
    refusals: list[dict[str, Any]] = [{}, {"name": None}, {"name": " "}, {"group_specs": {}}]
    for refused in refusals:
        assert asking.put(path, {"group_type": refused}).status_code == 400, refused
    assert asking.put(f"/v3/group_types/{UNKNOWN}", {"group_type": {"name": "x"}}).status_code == 404


def test_specs(admin: Client) -> None:
    path, asking = f"/v3/group_types/{make(admin)['id']}/group_specs", admin.at("3.11")
    assert asking.get(path).json == {"group_specs": {}}
    answer = asking.post(path, {"group_specs": {"a": "1", "b": None}})
    assert (answer.status_code, answer.json) == (202, {"group_specs": {"a": "1", "b": None}})
    asking.post(path, {"group_specs": {"a": "2"}})
    assert asking.get(path).json == {"group_specs": {"a": "2", "b": None}}
    assert asking.get(f"{path}/a").json == {"a": "2"}
    answer = asking.put(f"{path}/a", {"a": "3"})
    assert (answer.status_code, answer.json) == (200, {"a": "3"})
    for refused in ({"b": "3"}, {"a": "3", "b": "3"}, {}, {"a": 3}):
        assert asking.put(f"{path}/a", refused).status_code == 400, refused
    assert asking.delete(f"{path}/a").status_code == 202
    for method in ("GET", "DELETE"):
        assert asking.request(method, f"{path}/a").status_code == 404
    assert asking.get(path).json == {"group_specs": {"b": None}}
    assert asking.get(f"/v3/group_types/{UNKNOWN}/group_specs").status_code == 404


def test_a_type_is_deleted(admin: Client) -> None:
    path = f"/v3/group_types/{make(admin, group_specs={'a': '1'})['id']}"
    assert admin.at("3.11").delete(path).status_code == 202
    assert admin.at("3.11").get(path).status_code == 404
    assert admin.at("3.11").delete(path).status_code == 404


def test_the_type_of_consistency_groups_stays(admin: Client) -> None:
    asking = admin.at("3.11")
    [reserved] = asking.get("/v3/group_types").json["group_types"]
    assert reserved["group_specs"] == {"consistent_group_snapshot_enabled": "<is> True"}
    path = f"/v3/group_types/{reserved['id']}"
    assert asking.delete(path).status_code == 400
    assert asking.put(path, {"group_type": {"name": "mine"}}).status_code == 400
    assert asking.get(path).json["group_type"] == reserved


def test_no_default_type_unless_configured(client: Client) -> None:
    answer = client.at("3.11").get("/v3/group_types/default")
    assert (answer.status_code, answer.json["itemNotFound"]["message"]) == (
        404, "Default group type can not be found."
    )  # fmt: skip


@pytest.mark.parametrize("conf", [{"default_group_type": "together"}], indirect=True)
def test_the_configured_default_type(client: Client, admin: Client) -> None:
    assert client.at("3.11").get("/v3/group_types/default").status_code == 404
    made = make(admin)["id"]
    assert client.at("3.11").get("/v3/group_types/default").json["group_type"]["id"] == made
