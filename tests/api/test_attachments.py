# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching over HTTP: what is refused, who may, and how the two views of one row agree."""

from __future__ import annotations

from typing import Any

import pytest

from cinderlite.context import World
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor


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
