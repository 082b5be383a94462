# SPDX-License-Identifier: Apache-2.0
"""Default volume types of projects."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import OTHER, PROJECT, Client

OURS, THEIRS = f"/v3/default-types/{PROJECT}", f"/v3/default-types/{OTHER}"


@pytest.fixture
def root(admin: Client) -> Client:
    """An administrator at the version that has default types."""
    return admin.at("3.62")


def make(admin: Client, name: str, *, public: bool = True) -> str:
    wanted = {"name": name, "os-volume-type-access:is_public": public}
    return str(admin.post("/v3/types", {"volume_type": wanted}).json["volume_type"]["id"])


def wish(name: Any) -> dict[str, Any]:
    return {"default_type": {"volume_type": name}}


def test_a_projects_own_default_is_set_shown_changed_and_removed(root: Client) -> None:
    gold, silver = make(root, "gold"), make(root, "silver")
    assert root.get("/v3/default-types").json == {"default_types": []}
    answer = root.put(THEIRS, wish("gold"))
    assert (answer.status_code, answer.json) == (200, {"default_type": {"project_id": OTHER, "volume_type_id": gold}})
    assert root.get(THEIRS).json == answer.json
    ours = {"project_id": PROJECT, "volume_type_id": silver}
    assert root.put(OURS, wish(silver)).json == {"default_type": ours}
    assert root.get("/v3/default-types").json == {
        "default_types": [ours, {"project_id": OTHER, "volume_type_id": gold}]
    }
    assert root.put(OURS, wish("gold")).json["default_type"]["volume_type_id"] == gold
    assert root.get(OURS).json["default_type"]["volume_type_id"] == gold
    answer = root.delete(OURS)
    assert (answer.status_code, answer.text) == (204, "")
    assert root.get(OURS).status_code == 404
    assert root.delete(OURS).status_code == 204
    assert [one["project_id"] for one in root.get("/v3/default-types").json["default_types"]] == [OTHER]


def test_a_volume_without_a_type_gets_its_projects_default(root: Client, client: Client, stranger: Client) -> None:
    gold = make(root, "gold")
    root.put(OURS, wish("gold"))
    assert client.volume()["volume_type"] == client.volume(volume_type=None)["volume_type"] == "gold"
    assert client.get("/v3/types/default").json["volume_type"]["id"] == gold
    assert client.volume(volume_type="__DEFAULT__")["volume_type"] == "__DEFAULT__"
    assert stranger.volume()["volume_type"] == "__DEFAULT__"
    root.delete(OURS)
    assert client.volume()["volume_type"] == "__DEFAULT__"


def test_a_default_that_the_project_may_not_use_is_404(root: Client, client: Client, stranger: Client) -> None:
    gold = make(root, "gold", public=False)
    root.put(OURS, wish("gold"))
    assert client.post("/v3/volumes", {"volume": {"size": 1}}).status_code == 404
    assert client.get("/v3/types/default").status_code == 404
    assert root.post(f"/v3/types/{gold}/action", {"addProjectAccess": {"project": PROJECT}}).status_code == 202
    assert client.volume()["volume_type"] == "gold"


def test_a_projects_default_is_not_deleted(root: Client) -> None:
    gold = make(root, "gold")
    root.put(THEIRS, wish("gold"))
    assert root.delete(f"/v3/types/{gold}").status_code == 400
    root.delete(THEIRS)
    assert root.delete(f"/v3/types/{gold}").status_code == 202


@pytest.mark.parametrize(
    "body", [{}, {"default_type": {}}, wish(None), wish(""), wish(" "), wish(1), wish("x" * 256), wish("gold") | {"x": 1},
             {"default_type": {"volume_type": "__DEFAULT__", "more": 1}}, wish("platinum")]
)  # fmt: skip
def test_what_is_no_type_is_refused(root: Client, body: dict[str, Any]) -> None:
    assert root.put(OURS, body).status_code == 400
    assert root.get(OURS).status_code == 404


def test_default_types_are_for_administrators_since_3_62(root: Client, client: Client, reader: Client) -> None:
    for method, path, body in (
        ("GET", "/v3/default-types", None), ("GET", OURS, None), ("PUT", OURS, wish("__DEFAULT__")), ("DELETE", OURS, None)
    ):  # fmt: skip
        assert client.at("3.62").request(method, path, body).status_code == 403
        assert reader.at("3.62").request(method, path, body).status_code == 403
        assert root.at("3.61").request(method, path, body).status_code == 404
    assert root.get(OURS).status_code == 404
