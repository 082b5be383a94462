# SPDX-License-Identifier: Apache-2.0
"""Groups made from group snapshots and from groups."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy

from api.test_group_snapshots import TOGETHER, letters, new_group, parts, take, write, written_meanwhile
from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import groups, volumes
from cinderlite.db import models
from conftest import Client, settle
from fakes_cluster import FakeCluster

UNKNOWN = str(uuid.UUID(int=0))


@pytest.fixture(autouse=True)
def kinds(admin: Client) -> None:
    for name, specs in (("plain", {}), ("together", TOGETHER)):
        admin.at("3.11").post("/v3/group_types", {"group_type": {"name": name, "group_specs": specs}})


def post(client: Client, **fields: Any) -> Any:
    return client.at("3.14").post("/v3/groups/action", {"create-from-src": fields})


def make(client: Client, **fields: Any) -> str:
    answer = post(client, **fields)
    assert answer.status_code == 202, answer.text
    assert set(answer.json["group"]) == {"id", "name"}
    return str(answer.json["group"]["id"])


def shown(client: Client, group: str) -> dict[str, Any]:
    return client.at("3.25").get(f"/v3/groups/{group}?list_volume=1").json["group"]  # type: ignore[no-any-return]


def volume_of(client: Client, volume: str) -> dict[str, Any]:
    return client.at("3.13").get(f"/v3/volumes/{volume}").json["volume"]  # type: ignore[no-any-return]


def test_a_group_from_a_group(client: Client, cluster: FakeCluster) -> None:
    source, members = new_group(client)
    for volume in members:
        write(cluster, volume, volume[:8])
    made = shown(client, make(client, source_group_id=source, name="copy", description="d"))
    first = shown(client, source)
    assert (made["name"], made["description"], made["status"]) == ("copy", "d", "available")
    assert (made["source_group_id"], made["group_snapshot_id"]) == (source, None)
    for key in ("group_type", "volume_types", "availability_zone"):
        assert made[key] == first[key]
    found = {volume_of(client, one)["source_volid"]: one for one in made["volumes"]}
    assert set(found) == set(members)
    for volume, copied in found.items():
        assert letters(cluster, copied) == volume[:8]
        assert volume_of(client, copied)["group_id"] == made["id"]
    assert first["volumes"] == members


@pytest.mark.parametrize("kind", ["plain", "together"])
def test_a_group_from_a_group_snapshot(
    client: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source, (busy, quiet) = new_group(client, kind)
    write(cluster, busy, "at the moment")
    write(cluster, quiet, "calm")
    if kind == "together":
        written_meanwhile(monkeypatch, cluster, busy)
    snapshot = take(client, source)
    write(cluster, quiet, "later")
    client.at("3.13").put(f"/v3/groups/{source}", {"group": {"remove_volumes": quiet}})
    made = shown(client, make(client, group_snapshot_id=snapshot))
    assert (made["status"], made["group_snapshot_id"], made["source_group_id"]) == ("available", snapshot, None)
    found = {volume_of(client, one)["snapshot_id"]: one for one in made["volumes"]}
    for volume, text in ((busy, "at the moment"), (quiet, "calm")):
        assert letters(cluster, found[parts(client, snapshot)[volume]["id"]]) == text


def test_what_was_made_outlives_its_source(client: Client, world: World, cluster: FakeCluster) -> None:
    source, members = new_group(client)
    write(cluster, members[0], "kept")
    snapshot = take(client, source)
    copies = shown(client, make(client, group_snapshot_id=snapshot))["volumes"]
    assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 202
    action = {"delete": {"delete-volumes": True}}
    assert client.at("3.13").post(f"/v3/groups/{source}/action", action).status_code == 202
    settle(world)
    assert client.at("3.13").get(f"/v3/groups/{source}").status_code == 404
    assert "kept" in {letters(cluster, one) for one in copies}


def test_refusals(client: Client, stranger: Client, reader: Client, admin: Client) -> None:
    source, _ = new_group(client)
    empty, _ = new_group(client, members=0)
    snapshot = take(client, source)
    both = {"source_group_id": source, "group_snapshot_id": snapshot}
    bodies: list[tuple[dict[str, Any], int]] = [
        ({}, 400), (both, 400), ({"source_group_id": empty}, 400), ({"source_group_id": UNKNOWN}, 404),
        ({"group_snapshot_id": UNKNOWN}, 404), ({"source_group_id": "x"}, 400), ({"source_group_id": None}, 400),
        ({"source_group_id": source, "colour": "red"}, 400),
    ]  # fmt: skip
    before = client.at("3.13").get("/v3/groups").json
    for body, status in bodies:
        assert post(client, **body).status_code == status, body
    for fields in ({"source_group_id": source}, {"group_snapshot_id": snapshot}):
        assert post(stranger, **fields).status_code == 404
        assert post(reader, **fields).status_code == 403
        body = {"create-from-src": fields}
        assert client.at("3.13").post("/v3/groups/action", body).status_code == 404
    part = next(iter(parts(client, snapshot).values()))["id"]
    admin.post(f"/v3/snapshots/{part}/action", {"os-reset_status": {"status": "error"}})
    assert post(client, group_snapshot_id=snapshot).status_code == 400
    assert client.at("3.13").get("/v3/groups").json == before


@pytest.mark.parametrize("conf", [{"quota_volumes": 3}, {"quota_groups": 1}], indirect=True)
def test_all_of_it_fits_into_the_quota_or_nothing(client: Client, cluster: FakeCluster) -> None:
    source, _ = new_group(client)
    images = set(cluster.stored)
    assert post(client, source_group_id=source).status_code == 413
    assert len(client.at("3.13").get("/v3/groups").json["groups"]) == 1
    assert len(client.get("/v3/volumes").json["volumes"]) == 2
    assert set(cluster.stored) == images


def test_a_group_waits_for_its_volumes(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = new_group(client)
    snapshot = take(client, source)

    def busy(*_: Any, **_named: Any) -> None:
        raise errors.CephUnavailable("not now")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "clone", busy)
        group = make(client, group_snapshot_id=snapshot)
        assert shown(client, group)["status"] == "creating"
        # What it is made from stays until then.
        assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 400
        action = f"/v3/groups/{group}/action"
        assert client.at("3.13").post(action, {"delete": {"delete-volumes": True}}).status_code == 400
    settle(world)
    assert shown(client, group)["status"] == "available"
    assert {volume_of(client, one)["status"] for one in shown(client, group)["volumes"]} == {"available"}
    assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 202


def test_a_source_group_stays_meanwhile(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = new_group(client)

    def busy(*_: Any, **_named: Any) -> None:
        raise errors.CephUnavailable("not now")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "copy", busy)
        make(client, source_group_id=source)
    action, body = f"/v3/groups/{source}/action", {"delete": {"delete-volumes": True}}
    assert client.at("3.13").post(action, body).status_code == 400
    settle(world)
    assert client.at("3.13").post(action, body).status_code == 202


def test_a_group_one_of_whose_volumes_failed_shows_it(
    client: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = new_group(client)

    def refuse(*_: Any, **_named: Any) -> None:
        raise errors.CephError("no")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "copy", refuse)
        group = make(client, source_group_id=source)
    assert shown(client, group)["status"] == "error"
    action = f"/v3/groups/{group}/action"
    assert client.at("3.13").post(action, {"delete": {"delete-volumes": True}}).status_code == 202
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404


def test_a_killed_process_leaves_a_whole_group(client: Client, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = new_group(client)
    with monkeypatch.context() as patched:
        # As if the process ended right after the commit that accepts.
        for machine in (groups.LIFECYCLE, volumes.LIFECYCLE):
            patched.setattr(machine, "run", lambda *_: None)
        group = make(client, source_group_id=source)
    assert shown(client, group)["status"] == "creating"
    with world.db.write() as session:
        for table in (models.Group, models.Volume):
            session.execute(sqlalchemy.update(table).where(table.busy == 1).values(lease_owner=None))
    settle(world)
    assert shown(client, group)["status"] == "available"
    assert {volume_of(client, one)["status"] for one in shown(client, group)["volumes"]} == {"available"}
