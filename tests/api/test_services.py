# SPDX-License-Identifier: Apache-2.0
"""Services, hosts, clusters and interrupted work over HTTP, for administrators."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from typing import Any

import pytest
import sqlalchemy

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import reconcile, services
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, cluster_of
from fakes_cluster import FakeCluster

HOST, BACKEND = "testhost", "testhost@ceph"
PART = {"host": BACKEND, "binary": "cinder-volume"}


@pytest.fixture(autouse=True)
def _alive(world: World) -> None:
    services.beat(world)


def unplaced(client: Client, **fields: Any) -> str:
    """What is said of a volume for which there is no place; it is accepted, as in Cinder, and ends in error."""
    made = client.post("/v3/volumes", {"volume": {"size": 1, **fields}})
    assert made.status_code == 202, made.text
    path = f"/v3/volumes/{made.json['volume']['id']}"
    assert client.get(path).json["volume"]["status"] == "error"
    messages = client.at("3.5").get("/v3/messages").json["messages"]
    [found] = [one for one in messages if one["resource_uuid"] == made.json["volume"]["id"]]
    assert found["event_id"] == "VOLUME_VOLUME_001_003"
    return str(found["user_message"])


def row(admin: Client, binary: str = "cinder-volume") -> dict[str, Any]:
    """A part as the newest version lists it."""
    [found] = admin.at("3.71").get(f"/v3/os-services?binary={binary}").json["services"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["cinder-backup testhost", "cinder-scheduler testhost", "cinder-volume testhost@ceph"]),
        (
            "?host=testhost",
            ["cinder-backup testhost", "cinder-scheduler testhost", "cinder-volume testhost@ceph"],
        ),
        ("?host=testhost@ceph", ["cinder-volume testhost@ceph"]),
        ("?host=testhost&binary=cinder-volume", ["cinder-volume testhost@ceph"]),
        ("?host=test", []),
    ],
)
def test_services_are_found_by_host_and_binary(admin: Client, world: World, query: str, found: list[str]) -> None:
    shown = admin.get(f"/v3/os-services{query}").json["services"]
    names = [f"{one['binary']} {one['host']}" for one in shown]
    assert names == found


def test_what_is_listed(admin: Client) -> None:
    both = admin.get("/v3/os-services").json["services"][1:]
    assert set(both[0]) == {"binary", "host", "zone", "status", "state", "updated_at", "disabled_reason"}
    assert set(both[1]) == set(both[0]) | {"replication_status", "active_backend_id", "frozen"}
    assert set(row(admin)) == set(both[1]) | {"cluster", "backend_state"}
    assert (row(admin)["state"], row(admin)["status"], row(admin)["backend_state"]) == ("up", "enabled", "up")
    assert admin.get("/v3/os-services?host=nobody").json["services"] == []


def test_a_host_that_is_silent_is_down(admin: Client, world: World) -> None:
    with world.db.write() as session:
        ago = models.utcnow() - datetime.timedelta(seconds=world.settings.service_down_after + 1)
        session.execute(sqlalchemy.update(models.Service).values(updated_at=ago))
    assert row(admin)["state"] == "down"


def test_a_host_that_is_gone_is_forgotten_and_one_that_lives_is_not(admin: Client, world: World) -> None:
    services.beat(dataclasses.replace(world, settings=dataclasses.replace(world.settings, host="lost")))
    with pytest.raises(errors.Conflict, match="alive"):
        services.remove(world, "lost")
    with world.db.write() as session:
        lost = models.Service.host.like("lost%")
        session.execute(sqlalchemy.update(models.Service).where(lost).values(updated_at=datetime.datetime(2026, 1, 1)))  # noqa: DTZ001 -- naive UTC
    before = len(admin.get("/v3/os-services").json["services"])
    assert services.remove(world, "lost") >= 2
    shown = admin.get("/v3/os-services").json["services"]
    assert "lost" not in {one["host"].partition("@")[0] for one in shown}
    assert len(shown) < before
    with pytest.raises(errors.HostNotFound):
        services.remove(world, "lost")


def test_a_back_end_whose_ceph_is_silent_is_down(admin: Client, cluster: FakeCluster) -> None:
    cluster.down = True
    assert (row(admin)["state"], row(admin)["backend_state"]) == ("up", "down")


@pytest.mark.parametrize("key", ["binary", "service"])
def test_a_disabled_back_end_gets_no_volumes(client: Client, admin: Client, key: str) -> None:
    volume = client.volume()["id"]
    named = {"host": BACKEND, key: "cinder-volume"}
    answer = admin.put("/v3/os-services/disable", named)
    assert answer.status_code == 200
    shown = {"host": BACKEND, "service": "", "binary": "", key: "cinder-volume"}
    assert answer.json == {**shown, "status": "disabled", "disabled": True}
    assert row(admin)["status"] == "disabled"
    assert "closed" in unplaced(client)
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 202
    answer = admin.put("/v3/os-services/enable", named)
    assert answer.json == {**shown, "status": "enabled", "disabled": False}
    assert client.volume()["status"] == "available"


def test_a_reason_is_kept_until_it_is_enabled(client: Client, admin: Client) -> None:
    path = "/v3/os-services/disable-log-reason"
    for reason in (None, "", "  ", "x" * 256, 5):
        assert admin.put(path, {**PART, "disabled_reason": reason}).status_code == 400, reason
    assert admin.put(path, PART).status_code == 400
    assert row(admin)["status"] == "enabled"
    answer = admin.put(path, {**PART, "disabled_reason": "new disks"})
    assert answer.json == {**PART, "service": "", "status": "disabled", "disabled": True,
                           "disabled_reason": "new disks"}  # fmt: skip
    assert row(admin)["disabled_reason"] == "new disks"
    assert "new disks" in unplaced(admin)
    admin.put("/v3/os-services/enable", PART)
    assert row(admin)["disabled_reason"] is None


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_parts_that_are_none(admin: Client, verb: str) -> None:
    for body, status in (
        ({"host": BACKEND, "binary": "cinder-backup"}, 404), ({"host": "nobody", "binary": "cinder-volume"}, 404),
        ({"host": BACKEND}, 400), ({"binary": "cinder-volume"}, 400), ({"host": "", "binary": "x"}, 400),
        ({"host": "a b", "binary": "x"}, 400), ({**PART, "more": 1}, 400), ({**PART, "binary": 5}, 400), ({}, 400),
    ):  # fmt: skip
        assert admin.put(f"/v3/os-services/{verb}", body).status_code == status, body


def test_frozen_is_as_it_was_and_nothing_comes_or_goes(client: Client, admin: Client) -> None:
    volume, other = client.volume()["id"], client.volume()["id"]
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    answer = admin.put("/v3/os-services/freeze", {"host": BACKEND})
    assert (answer.status_code, answer.data) == (200, b"")
    assert (row(admin)["frozen"], row(admin)["status"], row(admin)["disabled_reason"]) == (True, "disabled", "frozen")
    for method, path, body in (
        ("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}}),
        ("DELETE", f"/v3/snapshots/{snapshot}", None),
        ("DELETE", f"/v3/volumes/{other}", None),
    ):
        refused = client.request(method, path, body)
        assert refused.status_code == 400, path
        assert "frozen" in refused.json["badRequest"]["message"]
    assert "closed" in unplaced(client)
    assert "closed" in unplaced(client, snapshot_id=snapshot)
    assert client.put(f"/v3/volumes/{volume}", {"volume": {"name": "x"}}).status_code == 200
    assert client.post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 2}}).status_code == 202
    # Enabling alone does not thaw.
    admin.put("/v3/os-services/enable", PART)
    assert "closed" in unplaced(client)
    assert admin.put("/v3/os-services/freeze", {"host": BACKEND}).status_code == 400
    answer = admin.put("/v3/os-services/thaw", {"host": BACKEND})
    assert (answer.status_code, answer.data) == (200, b"")
    assert (row(admin)["frozen"], row(admin)["status"]) == (False, "enabled")
    assert admin.put("/v3/os-services/thaw", {"host": BACKEND}).status_code == 400
    assert client.delete(f"/v3/volumes/{other}").status_code == 202


@pytest.mark.parametrize("verb", ["freeze", "thaw", "failover_host"])
def test_back_ends_that_are_none(admin: Client, verb: str) -> None:
    for body in ({}, {"host": "nobody"}, {"host": HOST}, {"cluster": "c"}, {"host": BACKEND, "more": 1}):
        assert admin.at("3.0").put(f"/v3/os-services/{verb}", body).status_code == 400, body
        assert admin.at("3.71").put(f"/v3/os-services/{verb}", body).status_code == 400, body
    both = {"host": BACKEND, "cluster": "c"}
    assert admin.at("3.26").put(f"/v3/os-services/{verb}", both).status_code == 400
    assert row(admin)["frozen"] is False


def test_nothing_fails_over(admin: Client) -> None:
    for path in ("failover_host", "failover"):
        answer = admin.at("3.26").put(f"/v3/os-services/{path}", {"host": BACKEND, "backend_id": "other"})
        assert answer.status_code == 400
        assert "replication_status" in answer.json["badRequest"]["message"]
    assert admin.at("3.25").put("/v3/os-services/failover", {"host": BACKEND}).status_code == 404
    assert row(admin)["replication_status"] == "disabled"


def test_log_levels_are_set_in_this_process(admin: Client) -> None:
    for name in ("levels.one", "levels.one.two", "levelled"):
        logging.getLogger(name).setLevel("WARNING")
    asking = admin.at("3.32")
    answer = asking.put("/v3/os-services/set-log", {"binary": "*", "prefix": "levels.", "level": "debug"})
    assert (answer.status_code, answer.data) == (202, b"")
    assert logging.getLogger("levels.one.two").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("levelled").isEnabledFor(logging.INFO)
    shown = asking.put("/v3/os-services/get-log", {"prefix": "level"}).json["log_levels"]
    assert [(one["host"], one["binary"]) for one in shown] == [
        (HOST, "cinder-api"), (HOST, "cinder-backup"), (HOST, "cinder-scheduler"), (BACKEND, "cinder-volume")
    ]  # fmt: skip
    for one in shown:
        assert one["levels"] == {"levels.one": "DEBUG", "levels.one.two": "DEBUG", "levelled": "WARNING"}
    narrow = asking.put("/v3/os-services/get-log", {"binary": "cinder-volume", "prefix": "levels.one.two"})
    assert narrow.json["log_levels"] == [
        {"host": BACKEND, "binary": "cinder-volume", "levels": {"levels.one.two": "DEBUG"}}
    ]
    elsewhere = {"server": "other", "prefix": "levels.", "level": "ERROR"}
    assert asking.put("/v3/os-services/set-log", elsewhere).status_code == 202
    assert logging.getLogger("levels.one").isEnabledFor(logging.DEBUG)
    for body in ({}, {"level": None}, {"level": "loud"}, {"level": "INFO", "binary": "nova"}, {"level": 5},
                 {"level": "INFO", "more": 1}):  # fmt: skip
        assert asking.put("/v3/os-services/set-log", body).status_code == 400, body
    for verb in ("set-log", "get-log"):
        assert admin.at("3.31").put(f"/v3/os-services/{verb}", {"level": "INFO"}).status_code == 404


# -- hosts


def test_hosts(admin: Client, world: World) -> None:
    listed = admin.get("/v3/os-hosts").json["hosts"]
    assert [(one["host_name"], one["service"]) for one in listed] == [
        (HOST, "cinder-backup"), (HOST, "cinder-scheduler"), (BACKEND, "cinder-volume")
    ]  # fmt: skip
    assert set(listed[0]) == {"host_name", "service", "zone", "service-status", "service-state", "last-update"}
    assert (listed[2]["service-status"], listed[2]["service-state"]) == ("available", "enabled")
    assert admin.get("/v3/os-hosts?zone=nova").json["hosts"] == listed
    assert admin.get("/v3/os-hosts?zone=elsewhere").json["hosts"] == []


def test_what_lies_on_a_host(client: Client, stranger: Client, admin: Client) -> None:
    empty = {"host": BACKEND, "volume_count": "0", "total_volume_gb": "0", "snapshot_count": "0",
             "total_snapshot_gb": "0"}  # fmt: skip
    assert admin.get(f"/v3/os-hosts/{BACKEND}").json == {"host": [{"resource": {**empty, "project": "(total)"}}]}
    volume = client.volume(size=3)["id"]
    client.volume(size=1)
    stranger.volume(size=5)
    client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    found = [one["resource"] for one in admin.get(f"/v3/os-hosts/{BACKEND}").json["host"]]
    assert [(one["project"], one["volume_count"], one["total_volume_gb"], one["snapshot_count"],
             one["total_snapshot_gb"]) for one in found] == [
        ("(total)", "3", "9", "1", "3"), (PROJECT, "2", "4", "1", "3"), (OTHER, "1", "5", "0", "0")
    ]  # fmt: skip
    for host in ("nobody", "testhost@other", "test"):
        assert admin.get(f"/v3/os-hosts/{host}").status_code == 404, host


def test_a_host_is_switched(admin: Client) -> None:
    answer = admin.put(f"/v3/os-hosts/{BACKEND}", {"Status": "Disable"})
    assert (answer.status_code, answer.json) == (200, {"host": BACKEND, "status": "disabled"})
    assert (row(admin)["status"], row(admin, "cinder-scheduler")["status"]) == ("disabled", "enabled")
    assert admin.put(f"/v3/os-hosts/{BACKEND}", {"status": "enable"}).json["status"] == "enabled"
    assert row(admin)["status"] == "enabled"
    for body in ({"status": "sideways"}, {"status": 1}, {"maintenance": "enable"}):
        assert admin.put(f"/v3/os-hosts/{BACKEND}", body).status_code == 400, body
    assert admin.put("/v3/os-hosts/nobody", {"status": "enable"}).status_code == 404


# -- clusters


def test_there_are_no_clusters(admin: Client) -> None:
    asking = admin.at("3.7")
    for path in ("/v3/clusters", "/v3/clusters/detail", "/v3/clusters?is_up=1&disabled=no&num_hosts=1&name=x"):
        assert asking.get(path).json == {"clusters": []}
    for query in ("nonsense=1", "is_up=maybe", "frozen=1"):
        assert asking.get(f"/v3/clusters?{query}").status_code == 400, query
    assert admin.at("3.26").get("/v3/clusters?frozen=1").status_code == 200
    assert asking.get("/v3/clusters/main").status_code == 404
    for verb in ("enable", "disable"):
        assert asking.put(f"/v3/clusters/{verb}", {"name": "main"}).status_code == 404
        assert asking.put(f"/v3/clusters/{verb}", {}).status_code == 400
    assert admin.at("3.6").get("/v3/clusters").status_code == 404


# -- interrupted work


def interrupted(client: Client, world: World) -> str:
    """Id of a volume whose deletion waits long for its next try."""
    volume = str(client.volume()["id"])
    cluster_of(world).children.add(cluster_of(world).info(f"volume-{volume}").id)
    client.delete(f"/v3/volumes/{volume}")
    reconcile.once(world)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).lease_until = 2.0**40
    cluster_of(world).children.clear()
    reconcile.once(world)
    assert cluster_of(world).trashed()
    return volume


def test_interrupted_work_is_taken_up(client: Client, admin: Client, world: World) -> None:
    interrupted(client, world)
    # Only services that are down, if nothing else is said: there is none.
    assert admin.at("3.24").post("/v3/workers/cleanup", {}).json == {"cleaning": [], "unavailable": []}
    reconcile.once(world)
    assert cluster_of(world).trashed()
    answer = admin.at("3.24").post("/v3/workers/cleanup", {"is_up": True, "binary": "cinder-volume"})
    assert answer.status_code == 202
    [cleaned] = answer.json["cleaning"]
    assert (cleaned["host"], cleaned["binary"], cleaned["cluster_name"]) == (BACKEND, "cinder-volume", None)
    assert answer.json["unavailable"] == []
    assert world.wake.is_set()
    reconcile.once(world)
    assert not cluster_of(world).trashed()


def test_interrupted_work_on_one_resource(client: Client, admin: Client, world: World) -> None:
    volume = interrupted(client, world)
    asking = admin.at("3.24")
    for body, status in (
        ({"resource_id": volume, "resource_type": "volume", "is_up": "yes"}, 202),
        ({"resource_id": volume, "resource_type": "Snapshot", "is_up": True}, 400),
        ({"resource_id": volume, "resource_type": "backup", "is_up": True}, 400),
        ({"resource_id": OTHER, "is_up": True}, 400),
        ({"resource_id": "11111111-1111-4111-8111-111111111111", "is_up": True}, 400),
        ({"is_up": "perhaps"}, 400), ({"binary": "nova"}, 400), ({"more": 1}, 400), ({"service_id": 7}, 202),
        ({"cluster_name": "c", "is_up": True}, 202),
    ):  # fmt: skip
        assert asking.post("/v3/workers/cleanup", body).status_code == status, body
    assert admin.at("3.23").post("/v3/workers/cleanup", {}).status_code == 404


def test_work_in_hand_is_left_to_whoever_has_it(client: Client, admin: Client, world: World) -> None:
    volume = interrupted(client, world)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).lease_owner = "elsewhere:m:1/boot/1/1/nonce"
    admin.at("3.24").post("/v3/workers/cleanup", {"is_up": True})
    with world.db.read() as session:
        assert session.get_one(models.Volume, volume).lease_until == 2.0**40


# -- pools


def test_what_a_back_end_can_do(admin: Client) -> None:
    found = admin.get(f"/v3/capabilities/{BACKEND}").json
    assert set(found) == {
        "namespace", "vendor_name", "volume_backend_name", "pool_name", "driver_version", "storage_protocol",
        "display_name", "description", "visibility", "replication_targets", "properties",
    }  # fmt: skip
    assert found["namespace"] == f"OS::Storage::Capabilities::{BACKEND}"
    assert (found["storage_protocol"], found["replication_targets"]) == ("ceph", [])
    for one in found["properties"].values():
        assert set(one) == {"title", "description", "type"}
    assert admin.get("/v3/capabilities/nobody@ceph").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "os-services"), ("PUT", "os-services/enable"), ("PUT", "os-services/freeze"), ("GET", "os-hosts"),
        ("GET", "clusters"), ("GET", "clusters/x"), ("POST", "workers/cleanup"), ("GET", f"capabilities/{BACKEND}"),
        ("GET", "scheduler-stats/get_pools"), ("PUT", "os-services/set-log"), ("GET", f"os-hosts/{BACKEND}"),
    ],
)  # fmt: skip
def test_it_is_for_administrators(client: Client, method: str, path: str) -> None:
    assert client.at("3.71").request(method, f"/v3/{path}", {} if method != "GET" else None).status_code == 403


def test_a_name_that_no_service_has_is_an_error(world: World) -> None:
    with world.db.read() as session, pytest.raises(errors.ServiceMissing, match="cinder-volume on host nobody"):
        services.find(session, "nobody", "cinder-volume")


def pools_of(admin: Client, query: str, version: str = "3.71") -> list[str]:
    """Names of the pools that a query finds."""
    answer = admin.at(version).get(f"/v3/scheduler-stats/get_pools{query}")
    assert answer.status_code == 200, answer.text
    return [str(one["name"]) for one in answer.json["pools"]]


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)
def test_pools_are_filtered(admin: Client, world: World) -> None:
    everything, fast = ["testhost@ceph#ceph", "testhost@fast#fast"], ["testhost@fast#fast"]
    with world.db.write() as session:
        rows = [models.ExtraSpec(key="volume_backend_name", value="<or> fast")]
        session.add(models.VolumeType(name="quick", extra_spec_rows=rows))
    name = "?name=testhost%40fast%23fast"
    for query, version, found in (
        ("", "3.0", everything), (name, "3.27", everything), (name, "3.28", fast), (name, "3.71", fast),
        ("?name=nobody", "3.28", []), ("?volume_backend_name=fast", "3.30", fast), ("?multiattach=true", "3.30", everything),
        ("?reserved_percentage=0", "3.30", everything), ("?reserved_percentage=1", "3.30", []), ("?x=1", "3.30", []),
        ("?volume_type=quick", "3.34", everything), ("?volume_type=quick", "3.35", fast), ("?x=1", "3.27", everything),
        ("?volume_type=quick&detail=True", "3.71", fast), ("?volume_type=__DEFAULT__", "3.35", everything),
    ):  # fmt: skip
        assert pools_of(admin, query, version) == found, (query, version)
    for query, status in (("?x=1", 400), ("?reserved_percentage=0", 400), ("?volume_type=x", 404), ("?detail=x", 400)):
        assert admin.at("3.71").get(f"/v3/scheduler-stats/get_pools{query}").status_code == status, query
    admin.put("/v3/os-services/disable", {"host": "testhost@fast", "binary": "cinder-volume"})
    assert pools_of(admin, "") == everything[:1]


def test_the_figures_of_a_pool(client: Client, admin: Client, cluster: FakeCluster) -> None:
    client.volume(size=3)
    path = "/v3/scheduler-stats/get_pools?detail=true"
    [found] = admin.get(path).json["pools"]
    told = found["capabilities"]
    assert (told["total_capacity_gb"], told["free_capacity_gb"], told["allocated_capacity_gb"]) == (100, 100, 3)
    assert (told["provisioned_capacity_gb"], told["backend_state"]) == (3, "up")
    cluster.down = True
    admin.app.extensions["cinderlite"].world.room.clear()
    [found] = admin.get(path).json["pools"]
    told = found["capabilities"]
    assert (told["total_capacity_gb"], told["free_capacity_gb"], told["backend_state"]) == (
        "unknown",
        "unknown",
        "down",
    )


def test_nothing_is_taken_over_into_a_closed_back_end(client: Client, admin: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.create("mine", 2**30)
    cluster.snapshot(f"volume-{volume}", "by-hand")
    admin.put("/v3/os-services/disable", PART)
    takeover = {"volume": {"host": f"{BACKEND}#ceph", "ref": {"source-name": "mine"}}}
    assert admin.post("/v3/os-volume-manage", takeover).status_code == 503
    snapshot = {"snapshot": {"volume_id": volume, "ref": {"source-name": "by-hand"}}}
    assert admin.post("/v3/os-snapshot-manage", snapshot).status_code == 503
    admin.put("/v3/os-services/enable", PART)
    assert admin.post("/v3/os-volume-manage", takeover).status_code == 202
    assert admin.post("/v3/os-snapshot-manage", snapshot).status_code == 202


def test_a_frozen_back_end_keeps_its_groups(client: Client, admin: Client) -> None:
    made = admin.at("3.11").post("/v3/group_types", {"group_type": {"name": "plain"}}).json["group_type"]["id"]
    kind = client.get("/v3/types/default").json["volume_type"]["id"]
    body = {"group": {"group_type": made, "volume_types": [kind]}}
    group = client.at("3.13").post("/v3/groups", body).json["group"]["id"]
    admin.put("/v3/os-services/freeze", {"host": BACKEND})
    path, end = f"/v3/groups/{group}/action", {"delete": {"delete-volumes": True}}
    refused = client.at("3.13").post(path, end)
    assert refused.status_code == 400
    assert "frozen" in refused.json["badRequest"]["message"]
    admin.put("/v3/os-services/thaw", {"host": BACKEND})
    assert client.at("3.13").post(path, end).status_code == 202
