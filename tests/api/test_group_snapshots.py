# SPDX-License-Identifier: Apache-2.0
"""Snapshots of groups from outside, and what the cluster then holds."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import group_snapshots, services
from cinderlite.db import models
from conftest import Client, cluster_of, settle
from fakes_cluster import FakeCluster

UNKNOWN = str(uuid.UUID(int=0))
KIND = "__DEFAULT__"
TOGETHER = {"consistent_group_snapshot_enabled": "<is> True"}


@pytest.fixture
def kinds(admin: Client) -> None:
    """Group types "plain" and "together", of which the latter's snapshots hold one moment."""
    for name, specs in (("plain", {}), ("together", TOGETHER)):
        admin.at("3.11").post("/v3/group_types", {"group_type": {"name": name, "group_specs": specs}})


pytestmark = pytest.mark.usefixtures("kinds")


def new_group(client: Client, kind: str = "plain", members: int = 2, **fields: Any) -> tuple[str, list[str]]:
    """A group and its volumes."""
    body = {"group": {"group_type": kind, "volume_types": [KIND], **fields}}
    group = client.at("3.13").post("/v3/groups", body).json["group"]["id"]
    return group, [client.at("3.13").volume(group_id=group, volume_type=KIND)["id"] for _ in range(members)]


def post(client: Client, group: str, **fields: Any) -> Any:
    return client.at("3.14").post("/v3/group_snapshots", {"group_snapshot": {"group_id": group, **fields}})


def take(client: Client, group: str, **fields: Any) -> str:
    answer = post(client, group, **fields)
    assert answer.status_code == 202, answer.text
    assert set(answer.json["group_snapshot"]) == {"id", "name", "group_type_id"}
    return str(answer.json["group_snapshot"]["id"])


def shown(client: Client, snapshot: str, version: str = "3.14") -> dict[str, Any]:
    answer = client.at(version).get(f"/v3/group_snapshots/{snapshot}")
    assert answer.status_code == 200, answer.text
    return answer.json["group_snapshot"]  # type: ignore[no-any-return]


def status(client: Client, snapshot: str) -> str:
    return str(shown(client, snapshot)["status"])


def parts(client: Client, snapshot: str) -> dict[str, dict[str, Any]]:
    """The snapshots that a group snapshot consists of, by volume."""
    found = client.at("3.14").get("/v3/snapshots/detail").json["snapshots"]
    return {one["volume_id"]: one for one in found if one["group_snapshot_id"] == snapshot}


def letters(cluster: FakeCluster, volume: str) -> str:
    return cluster.data.get(cluster.stored[f"volume-{volume}"][0], "")


def write(cluster: FakeCluster, volume: str, text: str) -> None:
    cluster.data[cluster.stored[f"volume-{volume}"][0]] = text


def held(cluster: FakeCluster) -> set[str]:
    """Names of all snapshots in the cluster, those that nobody sees too."""
    return {name for snaps in cluster.snaps.values() for name in snaps}


def written_meanwhile(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster, *busy: str) -> None:
    """Have servers write to some volumes between their ordinary snapshots and the moment, and ever after."""
    original = cluster.group_snapshot

    def group_snapshot(group: str, names: list[str]) -> None:
        for volume in busy:
            write(cluster, volume, "at the moment")
        original(group, names)
        for volume in busy:
            write(cluster, volume, "after it")

    monkeypatch.setattr(cluster, "group_snapshot", group_snapshot)


# -- what they are


def test_a_group_snapshot_is_shown(client: Client, reader: Client, admin: Client) -> None:
    group, _ = new_group(client)
    snapshot = take(client, group, name="monday", description="d")
    kind = client.at("3.13").get(f"/v3/groups/{group}").json["group"]["group_type"]
    one = shown(reader, snapshot)
    assert one.pop("created_at")
    assert one == {
        "id": snapshot, "name": "monday", "description": "d", "status": "available", "group_id": group,
        "group_type_id": kind,
    }  # fmt: skip
    assert "project_id" not in shown(client, snapshot, "3.58")
    assert shown(admin, snapshot, "3.58")["project_id"] == client.headers["X-Test-Project"]
    for path in ("/v3/group_snapshots", "/v3/group_snapshots/detail", f"/v3/group_snapshots/{snapshot}"):
        assert client.at("3.13").get(path).status_code == 404
    reset = {"reset_status": {"status": "error"}}
    assert admin.at("3.18").post(f"/v3/group_snapshots/{snapshot}/action", reset).status_code == 404


@pytest.mark.parametrize("kind", ["plain", "together"])
def test_it_consists_of_ordinary_snapshots(client: Client, cluster: FakeCluster, kind: str) -> None:
    group, members = new_group(client, kind)
    outside = client.volume()["id"]
    for volume in (*members, outside):
        write(cluster, volume, volume[:8])
    snapshot = take(client, group, name="monday")
    found = parts(client, snapshot)
    assert set(found) == set(members)
    for volume, one in found.items():
        assert (one["status"], one["size"], one["name"]) == ("available", 1, "monday")
        assert one["os-extended-snapshot-attributes:progress"] == "100%"
        write(cluster, volume, "later")
        copied = client.volume(snapshot_id=one["id"])["id"]
        assert letters(cluster, copied) == volume[:8]
        assert cluster.parents[cluster.stored[f"volume-{copied}"][0]]  # A clone, not a copy.
    assert held(cluster) == {f"snapshot-{one['id']}" for one in found.values()}


def test_volumes_in_use_are_taken_along(client: Client, admin: Client) -> None:
    group, members = new_group(client)
    admin.post(f"/v3/volumes/{members[0]}/action", {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}})
    assert status(client, take(client, group)) == "available"


# -- one moment


def test_what_was_written_just_then_is_held_as_it_was(
    client: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, (busy, quiet) = new_group(client, "together")
    write(cluster, busy, "before")
    write(cluster, quiet, "calm")
    written_meanwhile(monkeypatch, cluster, busy)
    snapshot = take(client, group)
    found = parts(client, snapshot)
    assert status(client, snapshot) == "available"
    copies = {volume: client.volume(snapshot_id=found[volume]["id"], size=2) for volume in (busy, quiet)}
    assert [letters(cluster, copies[one]["id"]) for one in (busy, quiet)] == ["at the moment", "calm"]
    assert [copies[one]["status"] for one in (busy, quiet)] == ["available", "available"]
    assert held(cluster) == {f"group_snapshot-{snapshot}", f"snapshot-{found[quiet]['id']}"}
    assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 202
    assert held(cluster) == set()
    assert cluster.group_snaps == set()
    assert letters(cluster, copies[busy]["id"]) == "at the moment"


def test_without_that_promise_nothing_waits(
    client: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_meanwhile(monkeypatch, cluster)
    monkeypatch.setattr(cluster, "group_snapshot", lambda *_: pytest.fail("writers had to wait"))
    for kind, members in (("plain", 2), ("together", 1)):
        group, _ = new_group(client, kind, members)
        assert status(client, take(client, group)) == "available"


def test_a_volume_goes_back_to_the_moment(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, (busy, _) = new_group(client, "together")
    written_meanwhile(monkeypatch, cluster, busy)
    one = parts(client, take(client, group))[busy]
    write(cluster, busy, "a long time after the moment")
    answer = client.at("3.40").post(f"/v3/volumes/{busy}/action", {"revert": {"snapshot_id": one["id"]}})
    assert answer.status_code == 202, answer.text
    settle(world)
    assert client.get(f"/v3/volumes/{busy}").json["volume"]["status"] == "available"
    assert letters(cluster, busy) == "at the moment"


def test_a_moment_is_backed_up(client: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    group, (busy, _) = new_group(client, "together")
    written_meanwhile(monkeypatch, cluster, busy)
    one = parts(client, take(client, group))[busy]
    made = client.post("/v3/backups", {"backup": {"volume_id": busy, "snapshot_id": one["id"]}})
    assert made.status_code == 202, made.text
    backup = made.json["backup"]["id"]
    assert client.get(f"/v3/backups/{backup}").json["backup"]["status"] == "available"
    restored = client.post(f"/v3/backups/{backup}/restore", {"restore": {}}).json["restore"]["volume_id"]
    assert letters(cluster, restored) == "at the moment"


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"]}], indirect=True)
def test_what_holds_a_moment_with_others_does_not_move(
    client: Client, admin: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, (busy, _) = new_group(client, "together")
    written_meanwhile(monkeypatch, cluster, busy)
    take(client, group)
    client.at("3.13").put(f"/v3/groups/{group}", {"group": {"remove_volumes": busy}})
    answer = admin.post(f"/v3/volumes/{busy}/action", {"os-migrate_volume": {"host": "testhost@fast#fast"}})
    assert answer.status_code == 400
    assert "shares with other volumes" in answer.text


def test_several_writers_cannot_be_made_wait(client: Client, admin: Client) -> None:
    specs = {"multiattach": "<is> True"}
    admin.post("/v3/types", {"volume_type": {"name": "shared", "extra_specs": specs}})
    body = {"group": {"group_type": "together", "volume_types": ["shared"]}}
    group = client.at("3.13").post("/v3/groups", body).json["group"]["id"]
    members = [client.at("3.13").volume(group_id=group, volume_type="shared")["id"] for _ in range(2)]
    path = f"/v3/volumes/{members[0]}/action"
    admin.post(path, {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}})
    assert post(client, group).status_code == 400
    admin.post(path, {"os-detach": {}})
    assert status(client, take(client, group)) == "available"


# -- refusals


def test_of_what_there_is_no_snapshot(client: Client, admin: Client, stranger: Client, world: World) -> None:
    group, members = new_group(client)
    empty, _ = new_group(client, members=0)
    assert post(client, empty).status_code == 400
    assert post(client, UNKNOWN).status_code == 404
    assert post(client, "x").status_code == 400
    assert post(client, group, colour="red").status_code == 400
    assert post(stranger, group).status_code == 404
    admin.at("3.20").post(f"/v3/groups/{group}/action", {"reset_status": {"status": "error"}})
    assert post(client, group).status_code == 400
    admin.at("3.20").post(f"/v3/groups/{group}/action", {"reset_status": {"status": "available"}})
    for wrong in ("error", "maintenance", "creating"):
        with world.db.write() as session:
            session.get_one(models.Volume, members[1]).status = wrong
        assert post(client, group).status_code == 400, wrong
    assert client.at("3.14").get("/v3/group_snapshots").json == {"group_snapshots": []}
    assert client.get("/v3/snapshots").json["snapshots"] == []


@pytest.mark.parametrize("conf", [{"quota_snapshots": 3}], indirect=True)
def test_all_of_it_fits_into_the_quota_or_nothing(client: Client) -> None:
    group, _ = new_group(client)
    take(client, group)
    answer = post(client, group)
    assert answer.status_code == 413
    assert len(client.get("/v3/snapshots").json["snapshots"]) == 2
    assert len(client.at("3.14").get("/v3/group_snapshots").json["group_snapshots"]) == 1


def test_no_part_goes_alone(client: Client, admin: Client, cluster: FakeCluster) -> None:
    group, members = new_group(client)
    snapshot = take(client, group)
    one = parts(client, snapshot)[members[0]]["id"]
    answer = client.delete(f"/v3/snapshots/{one}")
    assert answer.status_code == 400
    assert "must not be part of a group" in answer.text
    assert admin.post(f"/v3/snapshots/{one}/action", {"os-unmanage": {}}).status_code == 400
    client.at("3.13").put(f"/v3/groups/{group}", {"group": {"remove_volumes": members[0]}})
    for query in ("", "?cascade=true"):
        assert client.delete(f"/v3/volumes/{members[0]}{query}").status_code == 400
    transfer = {"transfer": {"volume_id": members[0]}}
    assert client.at("3.55").post("/v3/volume-transfers", transfer).status_code == 400
    assert len(held(cluster)) == 2


def test_a_held_part_does_not_even_go_by_force(
    client: Client, admin: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, (busy, quiet) = new_group(client, "together")
    written_meanwhile(monkeypatch, cluster, busy)
    found = parts(client, take(client, group))
    ends = [
        admin.post(f"/v3/snapshots/{found[one]['id']}/action", {"os-force_delete": {}}).status_code
        for one in (busy, quiet)
    ]
    assert ends == [400, 202]


def test_a_group_with_snapshots_stays(client: Client) -> None:
    group, _ = new_group(client)
    snapshot = take(client, group)
    action = f"/v3/groups/{group}/action"
    assert client.at("3.13").post(action, {"delete": {"delete-volumes": True}}).status_code == 400
    client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}")
    assert client.at("3.13").post(action, {"delete": {"delete-volumes": True}}).status_code == 202
    assert client.at("3.13").get(f"/v3/groups/{group}").status_code == 404


def test_another_projects_and_a_readers_view(client: Client, stranger: Client, reader: Client) -> None:
    group, _ = new_group(client)
    path = f"/v3/group_snapshots/{take(client, group)}"
    reset = {"reset_status": {"status": "error"}}
    for method, where, body in (("GET", path, None), ("DELETE", path, None), ("POST", f"{path}/action", reset)):
        assert stranger.at("3.19").request(method, where, body).status_code == 404
    for method, where, body in (("DELETE", path, None), ("POST", f"{path}/action", reset)):
        assert reader.at("3.19").request(method, where, body).status_code == 403
    assert post(reader, group).status_code == 403
    assert stranger.at("3.14").get("/v3/group_snapshots").json == {"group_snapshots": []}


# -- lists


def test_lists(client: Client, admin: Client, stranger: Client) -> None:
    group, _ = new_group(client, members=1)
    other, _ = new_group(client, members=1)
    made = [take(client, one, name=name) for one, name in ((group, "a"), (group, "b"), (other, "c"))]
    asking = client.at("3.29")
    assert asking.get("/v3/group_snapshots?sort=name:asc").json["group_snapshots"] == [
        {"id": one, "name": name} for one, name in zip(made, "abc", strict=True)]  # fmt: skip
    page = asking.get("/v3/group_snapshots/detail?limit=2&sort=name:asc").json
    rest = asking.get(page["group_snapshot_links"][0]["href"].removeprefix("http://localhost")).json
    assert [one["name"] for one in page["group_snapshots"] + rest["group_snapshots"]] == ["a", "b", "c"]
    for query, found in (
        (f"group_id={other}", "c"),
        ("name=b", "b"),
        ("status=error", ""),
        ("status=available", "abc"),
    ):
        listed = asking.get(f"/v3/group_snapshots?sort=name:asc&{query}").json["group_snapshots"]
        assert "".join(one["name"] for one in listed) == found, query
    # Before 3.29 the query says nothing.
    assert len(client.at("3.28").get("/v3/group_snapshots?limit=1&name=b").json["group_snapshots"]) == 3
    assert client.at("3.31").get("/v3/group_snapshots?colour=red").status_code == 400
    assert asking.get(f"/v3/group_snapshots?marker={UNKNOWN}").status_code == 404
    elsewhere, _ = new_group(stranger, members=1)
    take(stranger, elsewhere)
    assert len(admin.at("3.29").get("/v3/group_snapshots?all_tenants=1").json["group_snapshots"]) == 4


# -- their end, and what interrupts them


def test_a_group_snapshot_goes_with_its_parts(client: Client, cluster: FakeCluster) -> None:
    group, members = new_group(client)
    snapshot = take(client, group)
    client.at("3.13").put(f"/v3/groups/{group}", {"group": {"remove_volumes": members[0]}})
    answer = client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}")
    assert (answer.status_code, answer.text) == (202, "")
    assert client.at("3.14").get(f"/v3/group_snapshots/{snapshot}").status_code == 404
    assert client.get("/v3/snapshots").json["snapshots"] == []
    assert held(cluster) == set()


def test_a_status_is_set_by_hand(client: Client, admin: Client) -> None:
    group, _ = new_group(client)
    snapshot = take(client, group)
    path = f"/v3/group_snapshots/{snapshot}"
    for wanted in ("creating", "Deleting", "error_deleting", "updating", "deleted", "available", "error"):
        answer = admin.at("3.19").post(f"{path}/action", {"reset_status": {"status": wanted}})
        assert answer.status_code == 202
        assert status(client, snapshot) == wanted.lower()
        ended = wanted in ("available", "error")
        assert ended or client.at("3.14").delete(path).status_code == 400
    refusals: list[dict[str, Any]] = [{"status": "in-use"}, {"status": ""}, {}]
    for refused in refusals:
        assert admin.at("3.19").post(f"{path}/action", {"reset_status": refused}).status_code == 400
    assert client.at("3.14").delete(path).status_code == 202


def free(world: World) -> None:
    """Let go of every lease, as if its process were dead, and finish what was begun."""
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.GroupSnapshot).values(lease_owner=None))
    settle(world)


class Killed(BaseException):
    """The end of a process."""


def dying(method: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    """The method of a process that dies right before or after it."""

    def call(*arguments: Any, **options: Any) -> Any:
        if not before:
            method(*arguments, **options)
        raise Killed

    return call


#: The step's calls, whether it dies before or after one, and whether somebody writes meanwhile.
DEATHS = list(
    itertools.product(
        ["snapshot", "group_snapshot", "opened", "remove_snapshot", "remove_group_snapshot"],
        [True, False],
        [True, False],
    )
)


@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_is_killed_leaves_a_whole_group_snapshot(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch, death: tuple[str, bool, bool]
) -> None:
    (method, before, is_busy), cluster = death, cluster_of(world)
    group, (busy, quiet) = new_group(client, "together")
    write(cluster, quiet, "calm")
    if is_busy:
        written_meanwhile(monkeypatch, cluster, busy)
    else:
        write(cluster, busy, "at the moment")
    with monkeypatch.context() as patched:
        patched.setattr(cluster, method, dying(getattr(cluster, method), before=before))
        try:
            post(client, group)
        except Killed:
            with world.db.read() as session:
                assert session.scalars(sqlalchemy.select(models.GroupSnapshot.busy)).all() == [1]
    free(world)
    [row] = client.at("3.14").get("/v3/group_snapshots").json["group_snapshots"]
    found = parts(client, row["id"])
    assert status(client, row["id"]) == "available"
    assert {one["status"] for one in found.values()} == {"available"}
    copies = [client.volume(snapshot_id=found[one]["id"])["id"] for one in (busy, quiet)]
    texts = [letters(cluster, one) for one in copies]
    # A second try may have a later moment: one that was, and the same for both.
    assert texts in (["at the moment", "calm"], ["after it", "calm"])
    assert client.at("3.14").delete(f"/v3/group_snapshots/{row['id']}").status_code == 202
    assert held(cluster) == set()
    assert cluster.group_snaps == set()


@pytest.mark.parametrize("method", ["remove_snapshot", "remove_group_snapshot"])
def test_a_delete_that_is_killed_is_finished(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    group, (busy, _) = new_group(client, "together")
    written_meanwhile(monkeypatch, cluster, busy)
    snapshot = take(client, group)
    with monkeypatch.context() as patched:
        patched.setattr(cluster, method, dying(getattr(cluster, method), before=False))
        with pytest.raises(Killed):
            client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}")
    assert status(client, snapshot) == "deleting"
    assert {one["status"] for one in parts(client, snapshot).values()} == {"deleting"}
    free(world)
    assert client.at("3.14").get(f"/v3/group_snapshots/{snapshot}").status_code == 404
    assert parts(client, snapshot) == {}
    assert held(cluster) == set()


def test_nothing_comes_or_goes_on_a_frozen_back_end(client: Client, admin: Client, world: World) -> None:
    group, _ = new_group(client)
    snapshot = take(client, group)
    services.beat(world)
    assert admin.put("/v3/os-services/freeze", {"host": "testhost@ceph"}).status_code == 200
    assert post(client, group).status_code == 400
    assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 400
    assert status(client, snapshot) == "available"
    assert {one["status"] for one in parts(client, snapshot).values()} == {"available"}


@pytest.mark.parametrize("method", ["group_snapshot", "opened"])
def test_what_fails_shows_it_and_can_be_deleted(
    client: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    group, members = new_group(client, "together")

    def refuse(*_: Any) -> None:
        raise errors.ImageNotFound(f"volume-{members[0]}")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, method, refuse)
        snapshot = take(client, group)
    assert status(client, snapshot) == "error"
    assert cluster.group_snaps == set()
    assert {one["status"] for one in parts(client, snapshot).values()} == {"error"}
    said = client.at("3.3").get("/v3/messages").json["messages"]
    assert {one["resource_uuid"] for one in said} == {one["id"] for one in parts(client, snapshot).values()}
    assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 202
    assert held(cluster) == set()


def test_a_busy_image_is_tried_again(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, members = new_group(client, "together")

    def refuse(*_: Any) -> None:
        raise errors.ImageBusy(f"volume-{members[0]}", "another client")

    for method in ("snapshot", "group_snapshot"):
        with monkeypatch.context() as patched:
            patched.setattr(cluster, method, refuse)
            snapshot = take(client, group)
            assert status(client, snapshot) == "creating"
            assert cluster.group_snaps == set()
        free(world)
        assert status(client, snapshot) == "available"
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "remove_snapshot", refuse)
        assert client.at("3.14").delete(f"/v3/group_snapshots/{snapshot}").status_code == 202
        assert status(client, snapshot) == "deleting"
    free(world)
    assert client.at("3.14").get(f"/v3/group_snapshots/{snapshot}").status_code == 404


def test_two_at_a_time_wait_for_each_other(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, members = new_group(client, "together")
    with monkeypatch.context() as patched:
        patched.setattr(group_snapshots.LIFECYCLE, "run", lambda *_: None)
        first = take(client, group)

    def refuse(*_: Any) -> None:
        raise errors.ImageBusy(f"volume-{members[0]}", "another group of images")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "group_snapshot", refuse)
        second = take(client, group)
    assert [status(client, one) for one in (first, second)] == ["creating", "creating"]
    free(world)
    assert [status(client, one) for one in (first, second)] == ["available", "available"]


def test_nothing_begins_while_the_cluster_is_down(client: Client, cluster: FakeCluster) -> None:
    group, _ = new_group(client)
    cluster.down = True
    assert post(client, group).status_code == 503
    cluster.down = False
    assert client.get("/v3/snapshots").json["snapshots"] == []
