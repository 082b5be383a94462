# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching over HTTP: what is refused, who may, and how the two views of one row agree."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.core import reconcile, states
from cinderlite.db import clock
from cinderlite.guests import Tuning
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor
from lab.process import wait


@pytest.fixture
def server(hypervisor: FakeHypervisor) -> str:
    return hypervisor.add_server("vm1", PROJECT).id


def path(server: str, volume: str = "") -> str:
    return f"/v2.1/servers/{server}/os-volume_attachments" + (f"/{volume}" if volume else "")


def attach(client: Client, server: str, volume: str, **more: Any) -> Any:
    return client.post(path(server), {"volumeAttachment": {"volumeId": volume, **more}})


def test_keys_by_version(client: Client, server: str) -> None:
    volume = client.volume()["id"]
    answer = attach(client, server, volume, device=None)
    assert (answer.status_code, set(answer.json["volumeAttachment"])) == (200, {"id", "volumeId", "serverId", "device"})
    keys = {
        "2.1": {"id", "volumeId", "serverId", "device"},
        "2.70": {"id", "volumeId", "serverId", "device", "tag"},
        "2.79": {"id", "volumeId", "serverId", "device", "tag", "delete_on_termination"},
        "2.89": {"volumeId", "serverId", "device", "tag", "delete_on_termination", "attachment_id", "bdm_uuid"},
    }
    for version, expected in keys.items():
        assert set(client.at(version).get(path(server, volume)).json["volumeAttachment"]) == expected, version
    one = client.at("2.89").get(path(server)).json["volumeAttachments"][0]["attachment_id"]
    assert client.at("3.27").get(f"/v3/attachments/{one}").json["attachment"]["status"] == "attached"


@pytest.mark.parametrize(
    ("version", "body"),
    [
        ("2.1", {"tag": "x"}), ("2.48", {"tag": "x"}), ("2.49", {"tag": "a/b"}), ("2.49", {"tag": "x" * 61}),
        ("2.78", {"delete_on_termination": True}), ("2.1", {"device": "nonsense/x"}), ("2.1", {"nonsense": 1}),
    ],
)  # fmt: skip
def test_what_a_version_does_not_take_is_400(client: Client, server: str, version: str, body: dict[str, Any]) -> None:
    volume = client.volume()["id"]
    assert attach(client.at(version), server, volume, **body).status_code == 400
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert client.post(path(server), {"volumeAttachment": {"volumeId": "nonsense"}}).status_code == 400
    assert client.post(path(server), {}).status_code == 400


def test_what_cannot_be_attached(client: Client, stranger: Client, reader: Client, hypervisor: FakeHypervisor) -> None:
    mine, theirs = hypervisor.add_server("mine", PROJECT).id, hypervisor.add_server("theirs", "c" * 32).id
    off = hypervisor.add_server("off", PROJECT, status="SHUTOFF").id
    volume, foreign = client.volume()["id"], stranger.volume()["id"]
    unknown = "11111111-1111-4111-8111-111111111111"
    assert attach(client, theirs, volume).status_code == 404
    assert attach(client, unknown, volume).status_code == 404
    assert attach(client, mine, foreign).status_code == 404
    assert attach(client, mine, unknown).status_code == 404
    assert attach(client, off, volume).status_code == 409
    assert attach(reader, mine, volume).status_code == 403
    assert attach(client, mine, volume).status_code == 200
    assert reader.delete(path(mine, volume)).status_code == 403
    assert stranger.delete(path(mine, volume)).status_code == 404
    again = attach(client, mine, volume)
    assert (again.status_code, "already attached" in again.text) == (400, True)
    assert client.delete(path(mine, unknown)).status_code == 404
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400


def test_a_refusal_rolls_everything_back(client: Client, hypervisor: FakeHypervisor, cluster: FakeCluster) -> None:
    full = hypervisor.add_server("full", PROJECT, ports=0).id
    volume = client.volume()["id"]
    assert attach(client, full, volume).status_code == 409
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert client.at("3.27").get("/v3/attachments").json["attachments"] == []
    server = hypervisor.add_server("vm", PROJECT).id
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.9:0/1"]
    refused = attach(client, server, volume)
    assert (refused.status_code, "192.0.2.9" in refused.text) == (400, True)
    cluster.watchers.clear()
    assert attach(client, server, volume).status_code == 200


def test_a_guest_that_holds_on(client: Client, world: World, hypervisor: FakeHypervisor, server: str) -> None:
    volume = client.volume()["id"]
    attach(client, server, volume)
    hypervisor.guests[server].holds = True
    assert client.delete(path(server, volume)).status_code == 202
    shown = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (shown["status"], shown["attachments"]) == ("detaching", [])
    assert client.delete(path(server, volume)).status_code == 400
    assert "reboot the guest" in client.at("3.5").get("/v3/messages").json["messages"][0]["user_message"]
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"
    hypervisor.guests[server].holds = False
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert client.get(path(server)).json["volumeAttachments"] == []


def test_a_silent_monitor_is_503_and_changes_nothing(
    client: Client, world: World, hypervisor: FakeHypervisor, server: str
) -> None:
    volume = client.volume()["id"]
    attach(client, server, volume)
    hypervisor.guests[server].silent = True
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    other = client.volume()["id"]
    assert attach(client, server, other).status_code in (409, 503)
    hypervisor.guests[server].silent = False
    settle(world)
    assert client.get(f"/v3/volumes/{other}").json["volume"]["status"] == "available"
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"


def test_a_dead_guest_gives_back_and_a_restarted_one_gets_again(
    client: Client, world: World, hypervisor: FakeHypervisor, cluster: FakeCluster, server: str
) -> None:
    volume = client.volume()["id"]
    attach(client, server, volume)
    hypervisor.guests[server].held.clear()
    settle(world)
    assert set(hypervisor.guests[server].held) == {volume}
    hypervisor.guests[server].gone = True
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.9:0/1"]
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"
    cluster.watchers.clear()
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_a_server_that_ends_while_it_is_attached_to_is_in_no_state_for_it(
    client: Client, hypervisor: FakeHypervisor, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    guest = hypervisor.guests[server]
    plug = guest.attach

    def end(*asked: Any) -> str:
        guest.gone = True
        return plug(*asked)

    monkeypatch.setattr(guest, "attach", end)
    refused = attach(client, server, volume)
    assert (refused.status_code, "vm_state stopped" in refused.text) == (409, True)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_a_server_that_is_kept_is_attached_to_while_it_is_off(
    client: Client, world: World, hypervisor: FakeHypervisor, cluster: FakeCluster
) -> None:
    server = hypervisor.add_server("kept", PROJECT, kept=True).id
    guest = hypervisor.guests[server]
    guest.gone = True
    first, second, open_elsewhere = (client.volume()["id"] for _ in range(3))
    names = [attach(client, server, volume).json["volumeAttachment"]["device"] for volume in (first, second)]
    assert len(set(names)) == 2
    assert guest.held == {}
    cluster.watchers[f"volume-{open_elsewhere}"] = ["192.0.2.9:0/1"]
    refused = attach(client, server, open_elsewhere)
    assert (refused.status_code, "192.0.2.9" in refused.text) == (400, True)
    settle(world)
    assert client.get(f"/v3/volumes/{first}").json["volume"]["status"] == "in-use"
    assert client.delete(path(server, second)).status_code == 202
    assert client.get(f"/v3/volumes/{second}").json["volume"]["status"] == "available"
    guest.gone = False
    settle(world)
    assert set(guest.held) == {first}
    guest.restart()
    guest.gone = True
    settle(world)
    assert client.get(f"/v3/volumes/{first}").json["volume"]["status"] == "in-use"
    guest.kept = False
    settle(world)
    assert client.get(f"/v3/volumes/{first}").json["volume"]["status"] == "available"


def test_with_its_server_a_volume_is_deleted_if_that_was_asked_for(
    client: Client, world: World, hypervisor: FakeHypervisor, cluster: FakeCluster, server: str
) -> None:
    goes, stays, snapped = (client.volume()["id"] for _ in range(3))
    for volume in (goes, stays, snapped):
        attach(client.at("2.79"), server, volume, delete_on_termination=volume != stays)
    body = {"snapshot": {"volume_id": snapped, "force": True}}
    assert client.post("/v3/snapshots", body).status_code == 202
    guest = hypervisor.guests[server]
    for knob in ("silent", "paused", "kept"):
        setattr(guest, knob, True)
        guest.gone = knob == "kept"
        settle(world)
        setattr(guest, knob, False)
        guest.gone = False
    assert {client.get(f"/v3/volumes/{one}").json["volume"]["status"] for one in (goes, stays, snapped)} == {"in-use"}
    guest.gone = True
    cluster.watchers[f"volume-{goes}"] = ["192.0.2.9:0/1"]
    settle(world)
    assert client.get(f"/v3/volumes/{goes}").json["volume"]["status"] == "detaching"
    assert f"volume-{goes}" in cluster.stored
    cluster.watchers.clear()
    settle(world)
    assert client.get(f"/v3/volumes/{goes}").status_code == 404
    assert f"volume-{goes}" not in cluster.stored
    for volume in (stays, snapped):
        assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    told = client.at("3.5").get("/v3/messages").json["messages"]
    [kept] = [one["resource_uuid"] for one in told if "not deleted with its server" in one["user_message"]]
    assert kept == snapped


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_watch_that_ceph_never_ends_keeps_no_volume(
    client: Client, world: World, hypervisor: FakeHypervisor, cluster: FakeCluster, server: str, comes_back: bool
) -> None:
    """Neither that of a server that has ended, nor that of one that was killed and has been started again."""
    volume = client.volume()["id"]
    attach(client.at("2.79"), server, volume)
    guest = hypervisor.guests[server]
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.9:0/1"]
    cluster.phantoms = {"192.0.2.9:0/1"}
    if comes_back:
        guest.restart()
        guest.held.clear()
    else:
        guest.gone = True
    settle(world)
    shown = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert shown["status"] == ("in-use" if comes_back else "detaching")
    settle(world, 30)
    shown = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert shown["status"] == ("in-use" if comes_back else "available")
    assert volume in guest.held or not comes_back


def test_a_server_that_comes_back_while_it_is_let_go_keeps_its_volume(
    client: Client, world: World, hypervisor: FakeHypervisor, cluster: FakeCluster, server: str
) -> None:
    volume = client.volume()["id"]
    attach(client.at("2.79"), server, volume, delete_on_termination=True)
    guest = hypervisor.guests[server]
    guest.gone = True
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.9:0/1"]
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"
    guest.restart()
    cluster.watchers.clear()
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    assert set(guest.held) == {volume}


def test_a_server_that_migrates_keeps_its_volume_and_then_is_on_the_other_host(
    client: Client, admin: Client, world: World, hypervisor: FakeHypervisor, server: str
) -> None:
    volume, other = client.volume()["id"], client.volume()["id"]
    attach(client.at("2.79"), server, volume, delete_on_termination=True)
    guest = hypervisor.guests[server]
    guest.arriving = True
    guest.held.clear()
    settle(world)
    assert guest.held == {}
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    assert attach(client, server, other).status_code == 409
    assert client.delete(path(server, volume)).status_code == 202
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"
    guest.arriving = False
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    attach(client, server, other)
    guest.move("second")
    settle(world)
    [shown] = admin.get(f"/v3/volumes/{other}").json["volume"]["attachments"]
    assert shown["host_name"] == "second"


def test_of_a_host_that_is_not_ours_nothing_is_concluded(
    client: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("elsewhere", PROJECT, host="other").id
    volume = client.volume()["id"]
    attach(client, server, volume)
    del hypervisor.guests[server]
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"


def test_servers_as_clients_list_them(client: Client, admin: Client, hypervisor: FakeHypervisor) -> None:
    one = hypervisor.add_server("web.1", PROJECT).id
    two = hypervisor.add_server("web-2", PROJECT, status="PAUSED").id
    hypervisor.add_server("foreign", "c" * 32)

    def names(query: str, who: Client = client) -> list[str]:
        return [entry["name"] for entry in who.get(f"/v2.1/servers/detail?{query}").json["servers"]]

    assert names("") == ["web-2", "web.1"]
    assert names("name=web.1") == ["web.1"]
    assert names("name=^web-2$") == ["web-2"]
    assert names("name=(a%2B)%2B$") == []
    assert names("status=PAUSED") == ["web-2"]
    assert names("deleted=False") == ["web-2", "web.1"]
    assert names("all_tenants=1") == ["web-2", "web.1"]
    assert len(names("all_tenants=1", admin)) == 3
    assert names("limit=1") == ["web-2"]
    assert names(f"limit=1&marker={two}") == ["web.1"]
    assert client.at("2.75").get("/v2.1/servers?nonsense=1").status_code == 400
    shown = client.get(f"/v2.1/servers/{one}").json["server"]
    assert shown["created"].endswith("Z")
    assert "OS-EXT-SRV-ATTR:host" not in shown
    assert "OS-EXT-SRV-ATTR:host" in admin.get(f"/v2.1/servers/{one}").json["server"]
    assert "original_name" in client.at("2.47").get(f"/v2.1/servers/{one}").json["server"]["flavor"]


def test_a_volume_goes_where_its_type_says_unless_the_server_knows_better(
    client: Client, admin: Client, hypervisor: FakeHypervisor
) -> None:
    spec = {"extra_specs": {"cinderlite:bus": "virtio-scsi", "cinderlite:cache": "writeback"}}
    kind = admin.post("/v3/types", {"volume_type": {"name": "slow", **spec}}).json["volume_type"]["id"]
    plain, both = hypervisor.add_server("plain", PROJECT), hypervisor.add_server("both", PROJECT, scsi=True)
    volume = client.volume(volume_type="slow")["id"]
    answer = attach(client, plain.id, volume)
    assert (answer.status_code, "virtio-scsi" in answer.json["conflictingRequest"]["message"]) == (409, True)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    hypervisor.guests[plain.id].metadata["cinderlite:bus"] = "virtio-blk"
    assert attach(client, plain.id, volume).json["volumeAttachment"]["device"] == "/dev/vda"
    assert hypervisor.guests[plain.id].held[volume].tuning == Tuning("virtio-blk", cache="writeback")
    other = client.volume(volume_type=kind)["id"]
    assert attach(client, both.id, other).json["volumeAttachment"]["device"] == "/dev/sda"
    for body in ({"cinderlite:bus": "ide"}, {"cinderlite:color": "red"}):
        assert admin.post("/v3/types", {"volume_type": {"name": "odd", "extra_specs": body}}).status_code == 400
        assert admin.post(f"/v3/types/{kind}/extra_specs", {"extra_specs": body}).status_code == 400


def test_an_administrator_sees_how_many_more_disks_a_server_takes(
    client: Client, admin: Client, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm", PROJECT, ports=2)
    attach(client, server.id, client.volume()["id"])
    where, room = f"/v2.1/servers/{server.id}/diagnostics", {"virtio-blk": 1, "virtio-scsi": 0}
    assert admin.at("2.47").get(where).json == {"cinderlite:free_places": room}
    said = admin.at("2.48").get(where).json
    assert (said["state"], said["cinderlite:free_places"]) == ("running", room)
    assert client.get(where).status_code == 403
    hypervisor.guests[server.id].gone = True
    assert admin.get(where).status_code == 409


def test_a_guest_that_lets_go_late_is_looked_at_between_two_passes(
    client: Client, world: World, hypervisor: FakeHypervisor, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "RETRY_AFTER", 0.05)
    volume = client.volume()["id"]
    attach(client, server, volume)
    guest = hypervisor.guests[server]
    guest.holds = True
    assert client.delete(path(server, volume)).status_code == 202
    reconciler = reconcile.Reconciler(world, 3600.0)
    reconciler.start()
    try:
        time.sleep(0.3)
        assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"
        guest.holds = False
        deadline = time.monotonic() + 20
        while client.get(f"/v3/volumes/{volume}").json["volume"]["status"] != "available":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        reconciler.stop(10)


def test_what_a_hypervisor_tells_is_looked_at_at_once(
    client: Client, hypervisor: FakeHypervisor, world: World, server: str
) -> None:
    volume, guest = client.volume()["id"], hypervisor.guests[server]

    def free() -> bool:
        return bool(client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available")

    attach(client, server, volume)
    listener = reconcile.Listener(world)
    listener.start()
    try:
        guest.holds = True
        assert client.delete(path(server, volume)).status_code == 202
        guest.holds = False
        hypervisor.heard("unknown", volume)
        hypervisor.heard(server, "unknown")
        hypervisor.heard(server, volume)
        wait(free, timeout=10, what="the disk that was let go to be noticed")
        attach(client, server, volume)
        del hypervisor.guests[server]
        hypervisor.heard(server, None)
        wait(free, timeout=10, what="the end of the server to be noticed")
    finally:
        listener.stop(10)


@pytest.mark.parametrize("conf", [{"guests__detach_give_up_after": 60.0}], indirect=True)
def test_a_guest_that_refuses_for_good_keeps_the_volume(
    client: Client, world: World, hypervisor: FakeHypervisor, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    attach(client, server, volume)
    guest = hypervisor.guests[server]
    guest.holds = True
    assert client.delete(path(server, volume)).status_code == 202
    settle(world)
    shown = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (shown["status"], client.delete(path(server, volume)).status_code) == ("detaching", 400)
    read = clock.read
    monkeypatch.setattr(clock, "read", lambda session: read(session) + 61)
    guest.silent = True  # That is no refusal.
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"
    guest.silent = False
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    told = [one["user_message"] for one in client.at("3.5").get("/v3/messages").json["messages"]]
    assert any("within 60 s" in one and "stays attached" in one for one in told)
    guest.holds = False
    assert client.delete(path(server, volume)).status_code == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


@pytest.mark.parametrize("conf", [{"guests__detach_give_up_after": 0.0}], indirect=True)
def test_where_it_is_wanted_a_detach_is_never_given_up(
    client: Client, world: World, hypervisor: FakeHypervisor, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    attach(client, server, volume)
    hypervisor.guests[server].holds = True
    client.delete(path(server, volume))
    read = clock.read
    monkeypatch.setattr(clock, "read", lambda session: read(session) + 1e6)
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "detaching"


def test_who_has_the_image_open_is_named(
    client: Client, hypervisor: FakeHypervisor, cluster: FakeCluster, server: str
) -> None:
    volume = client.volume()["id"]
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.7:0/1234"]
    answer = attach(client, server, volume)
    assert (answer.status_code, "192.0.2.7:0/1234" in answer.json["badRequest"]["message"]) == (400, True)
    assert (hypervisor.guests[server].held, cluster.fences) == ({}, {})
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
