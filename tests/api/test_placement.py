# SPDX-License-Identifier: Apache-2.0
"""Where volumes go, over two back ends: what they offer, where they are, how much room they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.core import pools, services
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, cluster_of
from fakes_hypervisor import FakeHypervisor

CEPH, FAST = "testhost@ceph#ceph", "testhost@fast#fast"
BOTH: dict[str, Any] = {
    "enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme", "quota_gigabytes": -1, "quota_volumes": -1
}  # fmt: skip
both = pytest.mark.parametrize("conf", [BOTH], indirect=True)
ZONES = {**BOTH, "fast__backend_availability_zone": "west"}


def make_type(world: World, name: str, specs: Mapping[str, str]) -> str:
    """Name of a new type with these extra specs."""
    with world.db.write() as session:
        rows = [models.ExtraSpec(key=key, value=value) for key, value in specs.items()]
        session.add(models.VolumeType(name=name, extra_spec_rows=rows))
    return name


def place(admin: Client, **fields: Any) -> str:
    """Where a new volume goes."""
    hints = fields.pop("hints", None)
    body = {"volume": {"size": 1, **fields}, **({"OS-SCH-HNT:scheduler_hints": hints} if hints else {})}
    made = admin.post("/v3/volumes", body)
    assert made.status_code == 202, made.text
    found = admin.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]
    assert found["status"] == "available"
    return str(found["os-vol-host-attr:host"])


def refused(client: Client, **fields: Any) -> str:
    """What is said of a volume for which there is no place; it is accepted, as in Cinder, and ends in error."""
    hints = fields.pop("hints", None)
    body = {"volume": {"size": 1, **fields}, **({"OS-SCH-HNT:scheduler_hints": hints} if hints else {})}
    made = client.post("/v3/volumes", body)
    assert made.status_code == 202, made.text
    path = f"/v3/volumes/{made.json['volume']['id']}"
    assert client.get(path).json["volume"]["status"] == "error"
    found = client.at("3.5").get("/v3/messages").json["messages"][0]
    assert (found["event_id"], found["resource_uuid"]) == ("VOLUME_VOLUME_001_003", made.json["volume"]["id"])
    assert client.delete(path).status_code == 202
    return str(found["user_message"])


def wrong(client: Client, **fields: Any) -> str:
    """What is said of a request that cannot be meant; nothing was made."""
    hints = fields.pop("hints", None)
    body = {"volume": {"size": 1, **fields}, **({"OS-SCH-HNT:scheduler_hints": hints} if hints else {})}
    before = client.get("/v3/volumes").json["volumes"]
    answer = client.post("/v3/volumes", body)
    assert answer.status_code == 400, answer.text
    assert client.get("/v3/volumes").json["volumes"] == before
    return str(answer.json["badRequest"]["message"])


def room(world: World, backend: str, *, total: int = 100, free: int = 100) -> None:
    """Let a fake have so many GiB; what is known of its figures is forgotten."""
    cluster_of(world, backend).total_bytes, cluster_of(world, backend).free_bytes = total * 2**30, free * 2**30
    world.room.clear()


# -- capacity


@both
def test_volumes_go_where_the_most_room_is(admin: Client, world: World) -> None:
    room(world, "fast", total=200, free=200)
    assert place(admin, size=50) == FAST
    room(world, "fast", total=50, free=50)
    assert place(admin) == CEPH


@both
def test_what_was_placed_counts_before_ceph_says_so(admin: Client, world: World) -> None:
    assert [place(admin, size=10) for _ in range(4)] == [CEPH, FAST, CEPH, FAST]


@pytest.mark.parametrize("conf", [{**BOTH, "ceph__max_over_subscription_ratio": 1.0}], indirect=True)
def test_a_pool_promises_so_many_times_its_size(admin: Client, client: Client, world: World) -> None:
    room(world, "fast", total=2, free=2)
    assert place(admin, size=60) == CEPH
    # 40 GiB are left in one, 2 times 20 in the other.
    assert place(admin, size=40) in (CEPH, FAST)
    assert place(admin, size=40) in (CEPH, FAST)
    world.room.clear()
    said = refused(admin, size=41)
    assert "ceph: 41 GiB wanted, 0 GiB left" in said
    assert "fast: 41 GiB wanted, 0 GiB left" in said
    said = refused(client)
    assert "not enough room" in said
    assert "ceph" not in said


@pytest.mark.parametrize("conf", [{**BOTH, "fast__reserved_percentage": 50}], indirect=True)
def test_reserved_space_and_a_full_pool(admin: Client, world: World) -> None:
    kind = make_type(world, "quick", {"volume_backend_name": "fast"})
    room(world, "fast", total=10, free=10)
    assert "100 GiB left" in refused(admin, volume_type=kind, size=101)
    assert place(admin, volume_type=kind, size=100) == FAST
    room(world, "fast", total=1000, free=500)
    assert "0 GiB left" in refused(admin, volume_type=kind)
    room(world, "fast", total=1000, free=501)
    assert "20 GiB left" in refused(admin, volume_type=kind, size=21)
    assert place(admin, volume_type=kind, size=20) == FAST


@both
def test_thick_volumes_need_the_space_itself(admin: Client, world: World) -> None:
    kind = make_type(world, "thick", {"provisioning:type": "thick"})
    assert "100 GiB left" in refused(admin, volume_type=kind, size=101)
    assert place(admin, volume_type=kind, size=100) == CEPH
    assert place(admin, size=101) == FAST


@both
def test_a_back_end_without_figures_comes_last(admin: Client, world: World) -> None:
    room(world, "ceph", total=1000, free=1000)
    cluster_of(world).statistics = False
    assert place(admin) == FAST
    cluster_of(world, "fast").statistics = False
    world.room.clear()
    assert place(admin, size=10**6) == CEPH


@both
def test_figures_count_as_soon_as_there_are_any(admin: Client, world: World) -> None:
    kind = make_type(world, "thick", {"provisioning:type": "thick", "volume_backend_name": "fast"})
    cluster_of(world, "fast").statistics = False
    assert place(admin, volume_type=kind, size=101) == FAST
    cluster_of(world, "fast").statistics = True
    assert "0 GiB left" in refused(admin, volume_type=kind, size=101)


@pytest.mark.parametrize("conf", [{**BOTH, "ceph__max_over_subscription_ratio": 1.0}], indirect=True)
def test_what_was_deleted_leaves_its_room_at_once(admin: Client, world: World) -> None:
    kind = make_type(world, "plain", {"volume_backend_name": "ceph"})
    for _ in range(3):
        made = admin.post("/v3/volumes", {"volume": {"size": 100, "volume_type": kind}}).json["volume"]["id"]
        assert admin.get(f"/v3/volumes/{made}").json["volume"]["status"] == "available"
        assert "0 GiB left" in refused(admin, volume_type=kind)
        assert admin.delete(f"/v3/volumes/{made}").status_code == 202


@both
def test_a_back_end_that_is_dead_hinders_nobody(admin: Client, client: Client, world: World) -> None:
    quick = make_type(world, "quick", {"volume_backend_name": "fast"})
    room(world, "fast", total=1000, free=1000)
    assert place(admin) == FAST
    cluster_of(world, "fast").down = True
    assert place(admin) == CEPH
    answer = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": quick}})
    assert answer.status_code == 503
    cluster_of(world).down = True
    assert client.post("/v3/volumes", {"volume": {"size": 1}}).status_code == 503
    pools.learn(world, 0.0)
    assert pools.left(world, world.backends["ceph"]) is None
    cluster_of(world).down = False
    assert place(admin) == CEPH


# -- extra specs


@pytest.mark.parametrize(
    ("specs", "where"),
    [
        ({"volume_backend_name": "fast"}, FAST), ({"capabilities:volume_backend_name": "fast"}, FAST),
        ({"volume_backend_name": "<or> tape <or> fast"}, FAST), ({"volume_backend_name": "<in> as"}, FAST),
        ({"volume_backend_name": "s== fast"}, FAST), ({"volume_backend_name": "s!= ceph"}, FAST),
        ({"volume_backend_name": "s> ceph"}, FAST), ({"reserved_percentage": ">= 5"}, FAST),
        ({"reserved_percentage": "= 5"}, FAST), ({"reserved_percentage": "<= 9"}, CEPH),
        ({"reserved_percentage": "== 10"}, FAST), ({"reserved_percentage": "!= 10"}, CEPH),
        ({"multiattach": "<is> True"}, CEPH), ({"thin_provisioning_support": "<is> yes"}, CEPH),
        ({"storage_protocol": "ceph"}, CEPH), ({"total_capacity_gb": ">= 100"}, CEPH), ({"hw:disk": "x"}, CEPH),
        ({"replication_enabled": "<is> False"}, CEPH),
    ],
)  # fmt: skip
@pytest.mark.parametrize("conf", [{**BOTH, "fast__reserved_percentage": 10}], indirect=True)
def test_extra_specs_decide(admin: Client, world: World, specs: dict[str, str], where: str) -> None:
    assert place(admin, volume_type=make_type(world, "gold", specs)) == where


@pytest.mark.parametrize(
    "specs",
    [
        {"volume_backend_name": "tape"}, {"volume_backend_name": "<or> tape <or>"}, {"nonsense": "x"},
        {"capabilities:nonsense": "x"}, {"multiattach": "True"}, {"replication_enabled": "<is> True"},
        {"reserved_percentage": ">= 11"}, {"storage_protocol": ">= 5"}, {"reserved_percentage": ">="},
        {"volume_backend_name": "fast", "reserved_percentage": "== 0"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("conf", [{**BOTH, "fast__reserved_percentage": 10}], indirect=True)
def test_what_nobody_offers_is_refused(admin: Client, client: Client, world: World, specs: dict[str, str]) -> None:
    kind = make_type(world, "gold", specs)
    key, wanted = next(iter(specs.items()))
    assert f"{key.removeprefix('capabilities:')} is not {wanted}" in refused(admin, volume_type=kind).replace(
        "capabilities:", ""
    )
    said = refused(client, volume_type=kind)
    assert "volume type" in said
    assert "fast:" not in said


# -- zones


@pytest.mark.parametrize("conf", [ZONES], indirect=True)
def test_zones(admin: Client, client: Client, world: World) -> None:
    services.beat(world)
    listed = client.get("/v3/os-availability-zone").json["availabilityZoneInfo"]
    assert listed == [{"zoneName": name, "zoneState": {"available": True}} for name in ("nova", "west")]
    assert place(admin) == CEPH
    assert place(admin, availability_zone="nova") == CEPH
    assert place(admin, availability_zone="west") == FAST
    assert client.volume(availability_zone="west")["availability_zone"] == "west"
    assert "'east'" in wrong(client, availability_zone="east")
    quick = make_type(world, "quick", {"volume_backend_name": "fast"})
    assert "availability zone" in refused(client, volume_type=quick)
    assert "its zone is west" in refused(admin, volume_type=quick)
    admin.put("/v3/os-services/disable", {"host": "testhost@fast", "binary": "cinder-volume"})
    listed = client.get("/v3/os-availability-zone").json["availabilityZoneInfo"]
    assert [one["zoneState"]["available"] for one in listed] == [True, False]


@pytest.mark.parametrize("conf", [{**ZONES, "allow_availability_zone_fallback": True}], indirect=True)
def test_an_unknown_zone_falls_back(admin: Client, client: Client) -> None:
    assert place(admin, availability_zone="east") == CEPH
    assert client.volume(availability_zone="east")["availability_zone"] == "nova"
    assert place(admin, availability_zone="west") == FAST


@pytest.mark.parametrize("conf", [{**ZONES, "default_availability_zone": "west"}], indirect=True)
def test_another_default_zone(admin: Client, client: Client) -> None:
    assert place(admin) == FAST
    listed = client.get("/v3/os-availability-zone").json["availabilityZoneInfo"]
    assert [one["zoneName"] for one in listed] == ["west", "nova"]


@pytest.mark.parametrize("conf", [ZONES], indirect=True)
def test_a_type_has_zones(admin: Client, client: Client, world: World) -> None:
    west = make_type(world, "west", {"RESKEY:availability_zones": "west,east"})
    every = make_type(world, "every", {"RESKEY:availability_zones": "west, nova"})
    nowhere = make_type(world, "nowhere", {"RESKEY:availability_zones": "east"})
    assert place(admin, volume_type=west) == FAST
    assert "'nova' is invalid" in wrong(client, volume_type=west, availability_zone="nova")
    assert "only supported" in wrong(client, volume_type=nowhere)
    assert {place(admin, volume_type=every, size=20) for _ in range(2)} == {CEPH, FAST}


@pytest.mark.parametrize("conf", [ZONES], indirect=True)
def test_a_clone_is_where_its_source_is(admin: Client, world: World) -> None:
    source = admin.volume(availability_zone="west")["id"]
    snapshot = admin.post("/v3/snapshots", {"snapshot": {"volume_id": source}}).json["snapshot"]["id"]
    assert place(admin, source_volid=source) == FAST
    assert place(admin, snapshot_id=snapshot) == FAST
    slow = make_type(world, "slow", {"volume_backend_name": "ceph"})
    for origin in ({"source_volid": source}, {"snapshot_id": snapshot}):
        assert "availability zone" in wrong(admin, **origin, availability_zone="nova")
        assert "type" in wrong(admin, **origin, volume_type=slow)
    services.beat(world)
    admin.put("/v3/os-services/disable", {"host": "testhost@fast", "binary": "cinder-volume"})
    assert "fast: disabled" in refused(admin, source_volid=source)


# -- scheduler hints


@both
def test_hints_by_volumes(admin: Client, client: Client, stranger: Client, world: World) -> None:
    quick = make_type(world, "quick", {"volume_backend_name": "fast"})
    fast, ceph = client.volume(volume_type=quick)["id"], client.volume(size=1)["id"]
    assert admin.get(f"/v3/volumes/{ceph}").json["volume"]["os-vol-host-attr:host"] == CEPH
    for hints, where in (
        ({"same_host": [fast]}, FAST), ({"same_host": fast}, FAST), ({"same_host": [ceph]}, CEPH),
        ({"different_host": [fast]}, CEPH), ({"different_host": ceph}, FAST), ({"same_host": []}, None),
        ({"same_host": [fast, ceph], "different_host": [ceph]}, FAST), ({"nonsense": "x"}, None),
        ({"same_host": None}, None),
    ):  # fmt: skip
        assert place(admin, hints=hints) in ({where} if where else {CEPH, FAST}), hints
    unknown = "11111111-1111-4111-8111-111111111111"
    assert "hints" in refused(client, hints={"different_host": [fast, ceph]})
    assert "ceph: excluded by same_host" in refused(admin, hints={"same_host": unknown})
    for text in ("x", ["x"], 5, {"a": "b"}, [None]):
        assert "is not a UUID" in wrong(client, hints={"same_host": text}), text
        assert "is not a UUID" in wrong(client, hints={"different_host": text}), text
    # Another project's volume is not looked at: a hint must not tell where it is.
    assert "hints" in refused(stranger, hints={"same_host": fast})
    stranger.volume()
    assert stranger.post(
        "/v3/volumes", {"volume": {"size": 1}, "scheduler_hints": {"different_host": [fast, ceph]}}
    ).status_code == 202  # fmt: skip


@both
def test_hints_by_server(admin: Client, client: Client, hypervisor: FakeHypervisor) -> None:
    here, theirs = hypervisor.add_server("vm", PROJECT).id, hypervisor.add_server("vm", OTHER).id
    away = hypervisor.add_server("far", PROJECT, host="otherhost").id
    assert place(admin, hints={"local_to_instance": here}) in (CEPH, FAST)
    assert "excluded by local_to_instance" in refused(admin, hints={"local_to_instance": away})
    assert "is not a UUID" in wrong(client, hints={"local_to_instance": "x"})
    for unknown in (theirs, "11111111-1111-4111-8111-111111111111"):
        body = {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": {"local_to_instance": unknown}}
        assert client.post("/v3/volumes", body).status_code == 404


# -- closed


@both
def test_a_closed_back_end_leaves_the_other(admin: Client, world: World) -> None:
    services.beat(world)
    room(world, "fast", total=1000, free=1000)
    admin.put("/v3/os-services/disable", {"host": "testhost@fast", "binary": "cinder-volume"})
    assert place(admin) == CEPH
    quick = make_type(world, "quick", {"volume_backend_name": "fast"})
    assert "fast: disabled" in refused(admin, volume_type=quick)
    volume = admin.volume()["id"]
    retype = {"os-retype": {"new_type": "quick", "migration_policy": "on-demand"}}
    assert admin.post(f"/v3/volumes/{volume}/action", retype).status_code == 400
    admin.put("/v3/os-services/enable", {"host": "testhost@fast", "binary": "cinder-volume"})
    assert admin.post(f"/v3/volumes/{volume}/action", retype).status_code == 202
    assert place(admin) == FAST
