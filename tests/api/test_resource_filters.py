# SPDX-License-Identifier: Apache-2.0
"""Which filters members may use in which list, by default and by the operator's file."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from oslo_config import cfg

from cinderlite import app as composition
from cinderlite import config, errors
from cinderlite.api import filters
from cinderlite.context import World
from conftest import PROJECT, Client, _client


def reading(world: World, conf: cfg.ConfigOpts, path: pathlib.Path, content: Any) -> Client:
    """A member of the project, of a service that reads the file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    conf.set_override("resource_query_filters_file", str(path))
    return _client(composition.create_app(conf, world), PROJECT, "member,reader", "alice")


def test_the_lists_are_shown(client: Client) -> None:
    shown = client.at("3.33").get("/v3/resource_filters").json["resource_filters"]
    assert {one["resource"]: one["filters"] for one in shown} == filters.DEFAULTS
    one = client.at("3.33").get("/v3/resource_filters?resource=group").json
    assert one == {"resource_filters": [{"resource": "group", "filters": ["name"]}]}
    assert client.at("3.33").get("/v3/resource_filters?resource=x").json == {"resource_filters": []}
    assert client.at("3.32").get("/v3/resource_filters").status_code == 404


@pytest.mark.parametrize(
    ("path", "resource"),
    [("volumes", "volume"), ("snapshots", "snapshot"), ("attachments", "attachment"), ("messages", "message"),
     ("backups", "backup"), ("types", "volume_type")],
)  # fmt: skip
def test_members_may_use_what_is_listed_and_nothing_else(client: Client, path: str, resource: str) -> None:
    values = {"metadata": "{}", "extra_specs": "{}", "bootable": "true", "consumes_quota": "true", "is_public": "true",
              "created_at": "gt:2026-01-01", "updated_at": "gt:2026-01-01"}  # fmt: skip
    asking = client.at("3.71")
    for key in filters.DEFAULTS[resource]:
        assert asking.get(f"/v3/{path}?{key}={values.get(key, 'x')}").status_code == 200, key
    for key in ("nonsense", "id", "user_id", "description", "project_id"):
        refused = asking.get(f"/v3/{path}?{key}=x")
        assert refused.status_code == 400, key
        assert key in refused.json["badRequest"]["message"]
    for key in ("limit=1", "offset=0", "sort=created_at:asc", "all_tenants=1"):
        assert asking.get(f"/v3/{path}?{key}").status_code == 200, key


def test_a_file_decides(conf: cfg.ConfigOpts, world: World, tmp_path: pathlib.Path) -> None:
    content = {"volume": ["name~", "size", "user_id", "description"], "snapshot": []}
    client = reading(world, conf, tmp_path / "filters.json", content)
    shown = client.at("3.33").get("/v3/resource_filters").json["resource_filters"]
    assert {one["resource"]: one["filters"] for one in shown} == content
    one, other = (client.volume(name=name, description=f"the {name}")["id"] for name in ("apple", "pear"))
    both = {one, other}

    def found(query: str, version: str = "3.71") -> set[str]:
        answer = client.at(version).get(f"/v3/volumes?{query}")
        assert answer.status_code == 200, answer.text
        return {str(volume["id"]) for volume in answer.json["volumes"]}

    assert found("name=apple") == found("name~=pp") == found("display_name=apple") == {one}
    assert found("description=the pear") == {other}
    assert found("user_id=alice") == both
    assert found("user_id=bob") == set()
    for query in ("status=available", "metadata={}", "size~=1", "user_id~=a"):
        assert client.at("3.71").get(f"/v3/volumes?{query}").status_code == 400, query
    # Searching came with 3.34, and the file counts since 3.31.
    assert client.at("3.33").get("/v3/volumes?name~=pp").status_code == 400
    assert client.at("3.33").get("/v3/volumes?name=apple").status_code == 400
    assert found("status=available", "3.30") == both
    assert found("user_id=bob", "3.30") == both
    for path in ("snapshots?name=x", "backups?name=x", "messages?event_id=x"):
        assert client.at("3.71").get(f"/v3/{path}").status_code == 400, path
    assert client.at("3.71").get("/v3/snapshots").status_code == 200


def test_administrators_may_filter_by_anything_all_the_same(
    conf: cfg.ConfigOpts, world: World, tmp_path: pathlib.Path
) -> None:
    client = reading(world, conf, tmp_path / "filters.json", {})
    admin = client.with_headers(X_Test_Roles="admin,member,reader")
    volume = client.volume()["id"]
    for query in ("status=available", "user_id=alice", f"id={volume}"):
        assert len(admin.at("3.71").get(f"/v3/volumes?{query}").json["volumes"]) == 1, query


@pytest.mark.parametrize("content", ["", "[]", '{"volume": "name"}', '{"volume": [1]}', "{"])
def test_a_file_that_is_none_stops_the_service(conf: cfg.ConfigOpts, world: World, content: str) -> None:
    path = pathlib.Path(conf.state_path) / "filters.json"
    path.write_text(content, encoding="utf-8")
    for name in (path, path.with_name("missing.json")):
        conf.set_override("resource_query_filters_file", str(name))
        with pytest.raises(errors.CinderliteError, match="resource_query_filters_file"):
            composition.create_app(conf, world)


def test_without_the_option_cinders_lists_count() -> None:
    assert "resource_query_filters_file" in {option.name for option in config.API}
    assert filters.load(None).keys == filters.DEFAULTS
