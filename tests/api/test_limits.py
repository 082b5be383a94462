# SPDX-License-Identifier: Apache-2.0
"""What QoS specs do to disks and images: when they come, when they change, and what is not begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import select

from cinderlite.context import World
from cinderlite.db import models
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

SLOW = {"total_iops_sec": "100", "total_iops_sec_max": "200", "total_iops_sec_max_length": "5", "size_iops_sec": "4096"}


def make(admin: Client, name: str = "slow", *, consumer: str = "front-end", **specs: str) -> str:
    """The URL of new QoS specs."""
    answer = admin.post("/v3/qos-specs", {"qos_specs": {"name": name, "consumer": consumer, **specs}})
    assert answer.status_code == 200, answer.text
    return f"/v3/qos-specs/{answer.json['qos_specs']['id']}"


def make_type(admin: Client, name: str, specs: str | None = None) -> str:
    """The id of a new type, with QoS specs if they are named."""
    kind = str(admin.post("/v3/types", {"volume_type": {"name": name}}).json["volume_type"]["id"])
    if specs is not None:
        assert admin.get(f"{specs}/associate?vol_type_id={kind}").status_code == 202
    return kind


def attach(client: Client, server: str, volume: str) -> Any:
    return client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})


def numbers(specs: Mapping[str, str]) -> dict[str, int]:
    return {key: int(value) for key, value in specs.items()}


class Disk:
    """A volume of type "gold" that is plugged into a server."""

    def __init__(self, client: Client, hypervisor: FakeHypervisor, size: int = 1) -> None:
        self.server = hypervisor.add_server("vm", PROJECT).id
        self.guest = hypervisor.guests[self.server]
        self.volume = client.volume(size=size, volume_type="gold")["id"]
        answer = attach(client, self.server, self.volume)
        assert answer.status_code == 200, answer.text

    @property
    def limits(self) -> Mapping[str, int]:
        """What the guest is held to."""
        return self.guest.held[self.volume].limits


@pytest.mark.parametrize("consumer", ["front-end", "both"])
def test_a_disk_is_limited_from_its_first_byte(
    admin: Client, client: Client, hypervisor: FakeHypervisor, consumer: str
) -> None:
    make_type(admin, "gold", make(admin, consumer=consumer, **SLOW, colour="red"))
    assert Disk(client, hypervisor).limits == numbers(SLOW)


def test_limits_of_the_back_end_and_none_at_all_are_no_limits_of_the_disk(
    admin: Client, client: Client, hypervisor: FakeHypervisor
) -> None:
    specs = make(admin, consumer="back-end", **SLOW)
    kind = make_type(admin, "gold", specs)
    assert Disk(client, hypervisor).limits == {}
    admin.get(f"{specs}/disassociate?vol_type_id={kind}")
    assert Disk(client, hypervisor).limits == {}


@pytest.mark.parametrize(
    "specs",
    [
        {"total_iops_sec": "10", "read_iops_sec": "5"},
        {"total_bytes_sec": "10", "write_bytes_sec_per_gb": "5"},
        {"write_iops_sec_max": "10"},
        {"read_iops_sec": "10", "read_iops_sec_max": "9"},
        {"read_iops_sec": "10", "read_iops_sec_max_length": "3"},
        {"read_iops_sec": "10", "read_iops_sec_max": str(10**14), "read_iops_sec_max_length": "11"},
        {"total_iops_sec": "10", "read_iops_sec_max": "20"},
        {"read_bytes_sec": "10", "size_iops_sec": "512"},
    ],
)
def test_specs_that_contradict_themselves_begin_no_attach(
    admin: Client, client: Client, hypervisor: FakeHypervisor, specs: dict[str, str]
) -> None:
    make_type(admin, "gold", make(admin, **specs))
    volume = client.volume(volume_type="gold")["id"]
    server = hypervisor.add_server("vm", PROJECT).id
    answer = attach(client, server, volume)
    assert (answer.status_code, "Invalid qos specs" in answer.text) == (400, True), answer.text
    found = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (found["status"], found["attachments"]) == ("available", [])
    assert hypervisor.guests[server].held == {}


def test_a_change_is_live(admin: Client, client: Client, world: World, hypervisor: FakeHypervisor) -> None:
    specs = make(admin, **SLOW)
    kind = make_type(admin, "gold", specs)
    disk = Disk(client, hypervisor)
    for change, limits in (
        ({"total_iops_sec": "150"}, {**SLOW, "total_iops_sec": "150"}),
        ({"consumer": "back-end"}, {}),
        ({"consumer": "both"}, {**SLOW, "total_iops_sec": "150"}),
    ):
        assert admin.put(specs, {"qos_specs": change}).status_code == 200
        assert world.wake.is_set()
        world.wake.clear()
        settle(world)
        assert disk.limits == numbers(limits)
    admin.put(specs + "/delete_keys", {"keys": ["total_iops_sec_max", "total_iops_sec_max_length"]})
    settle(world)
    assert disk.limits == {"total_iops_sec": 150, "size_iops_sec": 4096}
    admin.get(f"{specs}/disassociate?vol_type_id={kind}")
    settle(world)
    assert disk.limits == {}
    admin.get(f"{specs}/associate?vol_type_id={kind}")
    settle(world)
    assert disk.limits == {"total_iops_sec": 150, "size_iops_sec": 4096}
    admin.delete(f"{specs}?force=true")
    settle(world)
    assert disk.limits == {}
    assert client.get(f"/v3/volumes/{disk.volume}").json["volume"]["status"] == "in-use"


def test_a_guest_that_was_silent_is_limited_when_it_answers(
    admin: Client, client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    specs = make(admin, **SLOW)
    make_type(admin, "gold", specs)
    disk, other = Disk(client, hypervisor), Disk(client, hypervisor)
    disk.guest.silent = True
    admin.put(specs, {"qos_specs": {"total_iops_sec": "150"}})
    settle(world)
    assert (disk.limits["total_iops_sec"], other.limits["total_iops_sec"]) == (100, 150)
    disk.guest.silent = False
    settle(world)
    assert disk.limits["total_iops_sec"] == 150


def test_a_slip_takes_no_disk_away_and_what_can_be_kept_is_kept(
    admin: Client, client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    specs = make(admin, **SLOW)
    make_type(admin, "gold", specs)
    disk = Disk(client, hypervisor)
    admin.put(specs, {"qos_specs": {"read_iops_sec": "50", "write_bytes_sec": "1000", "write_bytes_sec_max": "10"}})
    settle(world)
    assert disk.limits == {**numbers(SLOW), "write_bytes_sec": 1000}
    del disk.guest.held[disk.volume]  # As a guest that was restarted.
    settle(world)
    assert disk.limits == {**numbers(SLOW), "write_bytes_sec": 1000}


def test_limits_that_a_guest_refuses_do_not_keep_its_disks_away(
    admin: Client, client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    specs = make(admin, **SLOW)
    make_type(admin, "gold", specs)
    disk = Disk(client, hypervisor)
    disk.guest.refuses_limits = True
    del disk.guest.held[disk.volume]
    settle(world)
    assert disk.limits == numbers(SLOW)


def test_limits_for_each_gib_grow_with_the_volume(
    admin: Client, client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    specs = {"total_iops_sec_per_gb": "10", "total_iops_sec_per_gb_min": "25", "total_iops_sec_max": "60"}
    make_type(admin, "gold", make(admin, **specs, total_iops_sec_max_length="9"))
    disk = Disk(client, hypervisor, size=2)
    assert disk.limits == {"total_iops_sec": 25}
    for size, limit in ((4, 40), (9, 60)):
        grow = {"os-extend": {"new_size": size}}
        assert client.at("3.42").post(f"/v3/volumes/{disk.volume}/action", grow).status_code == 202
        settle(world)
        assert disk.limits == {"total_iops_sec": limit}


# -- retype


def retype(client: Client, volume: str, name: str) -> Any:
    body = {"os-retype": {"new_type": name, "migration_policy": "never"}}
    return client.post(f"/v3/volumes/{volume}/action", body)


def test_a_disk_gets_the_limits_of_its_new_type(
    admin: Client, client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    make_type(admin, "gold", make(admin, **SLOW))
    make_type(admin, "silver", make(admin, "slower", read_bytes_sec="1000"))
    make_type(admin, "wrong", make(admin, "wrong", read_bytes_sec="1000", total_bytes_sec="1000"))
    make_type(admin, "free")
    disk = Disk(client, hypervisor)
    for name, status, limits in (
        ("silver", 202, {"read_bytes_sec": 1000}),
        ("wrong", 400, {"read_bytes_sec": 1000}),
        ("free", 202, {}),
        ("gold", 202, numbers(SLOW)),
    ):
        assert retype(client, disk.volume, name).status_code == status
        settle(world)
        assert disk.limits == limits
        assert client.get(f"/v3/volumes/{disk.volume}").json["volume"]["status"] == "in-use"


def test_who_was_told_other_limits_keeps_the_type(admin: Client, client: Client) -> None:
    make_type(admin, "gold", make(admin, **SLOW))
    make_type(admin, "alike", make(admin, "alike", consumer="both", **SLOW))
    make_type(admin, "free", make(admin, "free", consumer="back-end", **SLOW))
    volume = client.volume(volume_type="gold")["id"]
    attached = {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}}
    assert client.post(f"/v3/volumes/{volume}/action", attached).status_code == 202
    assert retype(client, volume, "free").status_code == 400
    assert retype(client, volume, "alike").status_code == 202


# -- by librbd

OPTIONS = {"rbd_qos_iops_limit": "100", "rbd_qos_iops_burst": "200", "rbd_qos_iops_burst_seconds": "5"}


def of_image(cluster: FakeCluster, volume: str) -> dict[str, str]:
    return cluster.limits(f"volume-{volume}")


def due(world: World) -> set[str]:
    """The volumes whose images' limits are to be looked at."""
    with world.db.read() as session:
        return set(session.scalars(select(models.Volume.id).where(models.Volume.limits_due.is_not(None))))


@pytest.mark.parametrize("consumer", ["back-end", "both"])
def test_an_image_is_limited_when_it_is_a_volume(
    admin: Client, client: Client, cluster: FakeCluster, consumer: str
) -> None:
    make_type(admin, "gold", make(admin, consumer=consumer, **SLOW))
    make_type(admin, "other", make(admin, "other"))
    first = client.volume(volume_type="gold")["id"]
    assert of_image(cluster, first) == OPTIONS
    assert of_image(cluster, client.volume(source_volid=first)["id"]) == OPTIONS
    assert of_image(cluster, client.volume(source_volid=first, volume_type="other")["id"]) == {}
    assert of_image(cluster, client.volume()["id"]) == {}


def test_each_limit_has_its_option(admin: Client, client: Client, cluster: FakeCluster) -> None:
    specs = {
        "total_iops_sec": "11", "total_bytes_sec": "12", "total_bytes_sec_max": "13",
        "read_iops_sec": "1", "write_iops_sec": "2", "read_bytes_sec": "3", "write_bytes_sec": "4",
        "read_iops_sec_max": "5", "write_iops_sec_max": "6", "read_bytes_sec_max": "7", "write_bytes_sec_max": "8",
        "read_bytes_sec_max_length": "9", "write_iops_sec_max_length": "10",
    }  # fmt: skip
    make_type(admin, "gold", make(admin, consumer="back-end", **specs))
    assert of_image(cluster, client.volume(volume_type="gold")["id"]) == {
        "rbd_qos_iops_limit": "11", "rbd_qos_bps_limit": "12", "rbd_qos_bps_burst": "13",
        "rbd_qos_read_iops_limit": "1", "rbd_qos_write_iops_limit": "2",
        "rbd_qos_read_bps_limit": "3", "rbd_qos_write_bps_limit": "4",
        "rbd_qos_read_iops_burst": "5", "rbd_qos_write_iops_burst": "6",
        "rbd_qos_read_bps_burst": "7", "rbd_qos_write_bps_burst": "8",
        "rbd_qos_read_bps_burst_seconds": "9", "rbd_qos_write_iops_burst_seconds": "10",
    }  # fmt: skip


def test_images_follow_every_change(admin: Client, client: Client, world: World, cluster: FakeCluster) -> None:
    specs = make(admin, consumer="back-end", **SLOW)
    kind = make_type(admin, "gold", specs)
    make_type(admin, "free")
    volume = client.volume(volume_type="gold")["id"]
    for path, body, options in (
        (specs, {"total_iops_sec": "150"}, {**OPTIONS, "rbd_qos_iops_limit": "150"}),
        (specs, {"consumer": "front-end"}, {}),
        (specs, {"consumer": "both"}, {**OPTIONS, "rbd_qos_iops_limit": "150"}),
    ):
        assert admin.put(path, {"qos_specs": body}).status_code == 200
        settle(world)
        assert of_image(cluster, volume) == options
    admin.put(specs + "/delete_keys", {"keys": ["total_iops_sec_max", "total_iops_sec_max_length"]})
    settle(world)
    assert of_image(cluster, volume) == {"rbd_qos_iops_limit": "150"}
    for gone, back in (
        (f"{specs}/disassociate?vol_type_id={kind}", f"{specs}/associate?vol_type_id={kind}"),
        (f"{specs}/disassociate_all", f"{specs}/associate?vol_type_id={kind}"),
    ):
        for path, options in ((gone, {}), (back, {"rbd_qos_iops_limit": "150"})):
            assert admin.get(path).status_code == 202
            settle(world)
            assert of_image(cluster, volume) == options
    for name, options in (("free", {}), ("gold", {"rbd_qos_iops_limit": "150"})):
        assert retype(client, volume, name).status_code == 202
        settle(world)
        assert of_image(cluster, volume) == options
    admin.delete(f"{specs}?force=true")
    settle(world)
    assert of_image(cluster, volume) == {}


def test_an_image_grows_out_of_its_limits(admin: Client, client: Client, world: World, cluster: FakeCluster) -> None:
    make_type(admin, "gold", make(admin, consumer="back-end", write_bytes_sec_per_gb="1000"))
    volume = client.volume(volume_type="gold", size=2)["id"]
    assert of_image(cluster, volume) == {"rbd_qos_write_bps_limit": "2000"}
    assert client.post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 3}}).status_code == 202
    settle(world)
    assert of_image(cluster, volume) == {"rbd_qos_write_bps_limit": "3000"}


def test_an_image_that_is_taken_over_has_the_limits_of_its_type_only(
    admin: Client, client: Client, cluster: FakeCluster
) -> None:
    make_type(admin, "gold", make(admin, consumer="back-end", **SLOW))
    for kind, options in (("gold", OPTIONS), (None, {})):
        cluster.create("foreign", 2**30)
        cluster.limit("foreign", {"read_bytes_sec": 7})
        body = {"host": "testhost@ceph#ceph", "ref": {"source-name": "foreign"}, "volume_type": kind}
        answer = admin.post("/v3/os-volume-manage", {"volume": {key: body[key] for key in body if body[key]}})
        assert answer.status_code == 202, answer.text
        assert of_image(cluster, answer.json["volume"]["id"]) == options


def test_images_are_limited_when_ceph_and_their_guests_answer_again(
    admin: Client, client: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor
) -> None:
    specs = make(admin, consumer="back-end", **SLOW)
    make_type(admin, "gold", specs)
    disk, other = Disk(client, hypervisor), client.volume(volume_type="gold")["id"]
    disk.guest.silent = cluster.down = True
    admin.put(specs, {"qos_specs": {"total_iops_sec": "150"}})
    settle(world)
    cluster.down = False
    settle(world)
    assert [of_image(cluster, one)["rbd_qos_iops_limit"] for one in (disk.volume, other)] == ["100", "150"]
    disk.guest.silent = False
    settle(world)
    assert of_image(cluster, disk.volume)["rbd_qos_iops_limit"] == "150"


def test_a_change_meets_a_volume_on_its_way(admin: Client, client: Client, world: World, cluster: FakeCluster) -> None:
    """One whose creation hangs, that is, and one that has no image."""
    specs = make(admin, consumer="back-end", **SLOW)
    make_type(admin, "gold", specs)
    cluster.stuck = True
    volume = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}}).json["volume"]["id"]
    admin.put(specs, {"qos_specs": {"total_iops_sec": "150"}})
    cluster.release()
    assert volume in due(world)
    settle(world)
    assert of_image(cluster, volume)["rbd_qos_iops_limit"] == "150"
    assert due(world) == set()
    del cluster.stored[f"volume-{volume}"]
    admin.put(specs, {"qos_specs": {"total_iops_sec": "160"}})
    assert due(world) == {volume}
    settle(world)
    assert due(world) == set()
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_limits_of_the_front_end_are_nothing_for_images_to_be_looked_at_for(
    admin: Client, client: Client, world: World
) -> None:
    specs = make(admin, **SLOW)
    kind = make_type(admin, "gold", specs)
    client.volume(volume_type="gold")
    admin.put(specs, {"qos_specs": {"total_iops_sec": "150"}})
    admin.get(f"{specs}/disassociate?vol_type_id={kind}")
    assert due(world) == set()


class Interrupted(FakeCluster):
    """A cluster on which something else happens while an image is limited."""

    between: Callable[[], object] | None = None

    def limit(self, name: str, limits: Mapping[str, int]) -> None:
        between, self.between = self.between, None
        if between is not None:
            between()
        super().limit(name, limits)


def test_who_comes_last_with_older_limits_does_not_have_the_last_word(
    admin: Client, client: Client, world: World, cluster: FakeCluster
) -> None:
    specs = make(admin, consumer="back-end", **SLOW)
    make_type(admin, "gold", specs)
    volume = client.volume(volume_type="gold")["id"]
    cluster.__class__ = Interrupted
    assert isinstance(cluster, Interrupted)

    def another_process() -> None:
        admin.put(specs, {"qos_specs": {"total_iops_sec": "160"}})
        settle(world, passes=1)
        assert (of_image(cluster, volume)["rbd_qos_iops_limit"], due(world)) == ("160", set())

    cluster.between = another_process
    admin.put(specs, {"qos_specs": {"total_iops_sec": "150"}})
    settle(world, passes=1)
    assert (of_image(cluster, volume)["rbd_qos_iops_limit"], due(world)) == ("150", {volume})
    settle(world)
    assert (of_image(cluster, volume)["rbd_qos_iops_limit"], due(world)) == ("160", set())
