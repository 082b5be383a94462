# SPDX-License-Identifier: Apache-2.0
"""What the compute API has beside attach and detach: changes, swaps, events, actions, and one row behind every view."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.core import actions, reconcile
from cinderlite.db import models
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

UNKNOWN = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def server(hypervisor: FakeHypervisor) -> str:
    return hypervisor.add_server("vm1", PROJECT).id


@pytest.fixture
def volume(client: Client, server: str) -> str:
    """A volume in the server."""
    made = str(client.volume()["id"])
    assert client.post(path(server), body(made)).status_code == 200
    return made


def path(server: str, volume: str = "") -> str:
    return f"/v2.1/servers/{server}/os-volume_attachments" + (f"/{volume}" if volume else "")


def body(volume: str, **more: Any) -> dict[str, Any]:
    return {"volumeAttachment": {"volumeId": volume, **more}}


def status(client: Client, volume: str) -> str:
    return str(client.get(f"/v3/volumes/{volume}").json["volume"]["status"])


# -- lists


def test_lists_page_and_take_no_unknown_keys(client: Client, server: str) -> None:
    made = [client.volume()["id"] for _ in range(3)]
    for one in made:
        client.post(path(server), body(one))

    def ids(query: str) -> list[str]:
        return [one["volumeId"] for one in client.get(f"{path(server)}?{query}").json["volumeAttachments"]]

    assert ids("") == ids("limit=0") == made
    assert ids("limit=2") == made[:2]
    assert ids("offset=1&limit=1") == made[1:2]
    assert ids("nonsense=1") == made
    assert client.at("2.74").get(f"{path(server)}?nonsense=1").status_code == 200
    assert client.at("2.75").get(f"{path(server)}?nonsense=1").status_code == 400
    assert client.at("2.75").get(f"{path(server)}?limit=1").status_code == 200
    for wrong in ("limit=-1", "limit=x", "offset=x"):
        assert client.get(f"{path(server)}?{wrong}").status_code == 400, wrong


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_another_project_in_the_path_is_400(client: Client, server: str, volume: str, method: str) -> None:
    url = path(server, "" if method == "POST" else volume).replace("/v2.1", f"/v2.1/{'c' * 32}")
    answer = client.request(method, url, body(volume) if method in ("POST", "PUT") else None)
    assert (answer.status_code, "Malformed request url" in answer.text) == (400, True)
    assert client.get(path(server, volume).replace("/v2.1", f"/v2.1/{PROJECT}")).status_code == 200


# -- what cannot be attached


def test_names_of_devices(client: Client, server: str, volume: str) -> None:
    taken = client.get(path(server, volume)).json["volumeAttachment"]["device"]
    other = client.volume()["id"]
    for wrong in ("vdc", "/dev/", "auto", "/dev/vd b", "", 7):
        assert client.post(path(server), body(other, device=wrong)).status_code == 400, wrong
    refused = client.post(path(server), body(other, device=taken))
    assert (refused.status_code, taken in refused.text) == (409, True)
    assert status(client, other) == "available"
    got = client.post(path(server), body(other, device="/dev/vdz")).json["volumeAttachment"]["device"]
    assert got not in (taken, "/dev/vdz")


@pytest.mark.parametrize("conf", [{"guests__max_disk_devices_to_attach": 1}], indirect=True)
def test_more_than_a_server_may_have_is_403(client: Client, server: str, volume: str) -> None:
    other = client.volume()["id"]
    assert client.post(path(server), body(other)).status_code == 403
    assert status(client, other) == "available"
    assert client.delete(path(server, volume)).status_code == 202
    assert client.post(path(server), body(other)).status_code == 200


@pytest.mark.parametrize(("word", "state"), [("SHUTOFF", "stopped"), ("SUSPENDED", "suspended")])
def test_a_server_in_no_state_for_it_is_409(client: Client, hypervisor: FakeHypervisor, word: str, state: str) -> None:
    server = hypervisor.add_server("vm", PROJECT, status=word).id
    volume = client.volume()["id"]
    refused = client.post(path(server), body(volume))
    assert (refused.status_code, f"in vm_state {state}" in refused.text) == (409, True)
    assert status(client, volume) == "available"


def test_what_a_server_boots_from_is_not_taken_from_it(
    client: Client, hypervisor: FakeHypervisor, server: str, volume: str
) -> None:
    guest, other = hypervisor.guests[server], client.volume()["id"]
    client.post(path(server), body(other))
    for one in (volume, other):
        bootable = {"os-set_bootable": {"bootable": True}}
        assert client.post(f"/v3/volumes/{one}/action", bootable).status_code == 200
    guest.root = volume
    refused = client.delete(path(server, volume))
    assert (refused.status_code, "Cannot detach a root device volume" in refused.text) == (400, True)
    assert (status(client, volume), set(guest.held)) == ("in-use", {volume, other})
    assert client.delete(path(server, other)).status_code == 202
    # One that cannot be asked is not waited for.
    guest.silent = True
    assert client.delete(path(server, volume)).status_code == 202
    assert status(client, volume) == "detaching"


# -- PUT


def test_what_becomes_of_a_volume_can_be_changed(client: Client, reader: Client, server: str, volume: str) -> None:
    newer = client.at("2.85")

    def kept() -> bool:
        shown = newer.get(path(server, volume)).json["volumeAttachment"]["delete_on_termination"]
        held = newer.get(f"/v2.1/servers/{server}").json["server"]["os-extended-volumes:volumes_attached"]
        assert held == [{"id": volume, "delete_on_termination": shown}]
        return not shown

    assert kept()
    for wanted in (True, "false", "1"):
        changed = newer.put(path(server, volume), body(volume, delete_on_termination=wanted))
        assert (changed.status_code, changed.text) == (202, "")
        assert kept() == (wanted == "false"), wanted
    assert newer.put(path(server, volume), body(volume)).status_code == 202
    assert not kept()
    assert reader.at("2.85").put(path(server, volume), body(volume)).status_code == 403
    # As it is, everything may stand there.
    shown = client.at("2.79").get(path(server, volume)).json["volumeAttachment"]
    del shown["tag"]  # Null is no tag.
    assert newer.put(path(server, volume), {"volumeAttachment": shown}).status_code == 202


@pytest.mark.parametrize(
    "more",
    [{"id": UNKNOWN}, {"serverId": UNKNOWN}, {"device": "/dev/vdz"}, {"tag": "x"}, {"nonsense": 1},
     {"delete_on_termination": None}, {"delete_on_termination": "maybe"}, {"attachment_id": UNKNOWN}],
)  # fmt: skip
def test_nothing_else_can_be_changed(client: Client, server: str, volume: str, more: dict[str, Any]) -> None:
    before = client.at("2.89").get(path(server, volume)).json
    sent = body(volume, **{"delete_on_termination": True, **more})
    refused = client.at("2.85").put(path(server, volume), sent)
    assert refused.status_code == 400
    assert client.at("2.89").get(path(server, volume)).json == before


def test_put_of_what_is_not_there(client: Client, stranger: Client, server: str, volume: str) -> None:
    newer, free = client.at("2.85"), client.volume()["id"]
    assert newer.put(path(server, free), body(free)).status_code == 404
    assert newer.put(path(server, UNKNOWN), body(UNKNOWN)).status_code == 404
    assert newer.put(path(UNKNOWN, volume), body(volume)).status_code == 404
    assert stranger.at("2.85").put(path(server, volume), body(volume)).status_code == 404
    assert newer.put(path(server, volume), {"volumeAttachment": {}}).status_code == 400
    assert newer.put(path(server, volume), {}).status_code == 400


def test_a_swap_is_refused_as_nova_refuses_it(
    client: Client, nova: Client, admin: Client, server: str, volume: str
) -> None:
    other = client.volume()["id"]
    for version in ("2.1", "2.84", "2.85"):
        swap = path(server, volume), body(other)
        assert client.at(version).put(*swap).status_code == 403, version
        refused = nova.at(version).put(*swap)
        assert (refused.status_code, f"volume {volume} is not migrating" in refused.text) == (409, True)
        assert nova.at(version).put(path(server, UNKNOWN), body(other)).status_code == 404
    # Below 2.85 there is nothing but swaps.
    assert nova.at("2.84").put(path(server, volume), body(volume)).status_code == 409
    assert nova.at("2.84").put(path(server, volume), body(volume, delete_on_termination=True)).status_code == 400
    moved = {"os-reset_status": {"migration_status": "migrating"}}
    assert admin.post(f"/v3/volumes/{volume}/action", moved).status_code == 202
    assert nova.put(path(server, volume), body(UNKNOWN)).status_code == 400
    free = client.volume()["id"]
    assert admin.post(f"/v3/volumes/{free}/action", moved).status_code == 202
    assert nova.put(path(server, free), body(other)).status_code == 404
    refused = nova.put(path(server, volume), body(other))
    assert (refused.status_code, "itself" in refused.text) == (409, True)
    assert [one["volumeId"] for one in client.get(path(server)).json["volumeAttachments"]] == [volume]
    assert (status(client, volume), status(client, other)) == ("in-use", "available")


# -- events of others

EVENTS = "/v2.1/os-server-external-events"


def event(name: str, server: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "server_uuid": server, **more}


@pytest.fixture
def cinder(client: Client) -> Client:
    """Another service, in a project of its own."""
    return client.with_headers(X_Test_Roles="service", X_Test_Project="d" * 32, X_Test_User="cinder")


def test_a_larger_image_is_shown_to_its_guest(
    client: Client, cinder: Client, hypervisor: FakeHypervisor, cluster: FakeCluster, server: str, volume: str
) -> None:
    cluster.grow(f"volume-{volume}", 5 * 2**30)
    told = event("volume-extended", server, tag=volume)
    answer = cinder.at("2.51").post(EVENTS, {"events": [told]})
    assert (answer.status_code, answer.json) == (200, {"events": [{**told, "status": "completed", "code": 200}]})
    assert hypervisor.guests[server].sizes == {volume: 5 * 2**30}
    [found, _attach] = client.get(f"/v2.1/servers/{server}/os-instance-actions").json["instanceActions"]
    assert (found["action"], found["message"]) == ("extend_volume", None)


def test_an_event_for_a_guest_that_cannot_be_asked_is_taken(
    client: Client, cinder: Client, hypervisor: FakeHypervisor, server: str, volume: str
) -> None:
    hypervisor.guests[server].silent = True
    assert cinder.at("2.51").post(EVENTS, {"events": [event("volume-extended", server, tag=volume)]}).status_code == 200
    [found, _attach] = client.get(f"/v2.1/servers/{server}/os-instance-actions").json["instanceActions"]
    assert found["message"] == "Error"


def test_each_event_has_a_code_of_its_own(cinder: Client, hypervisor: FakeHypervisor, server: str) -> None:
    nowhere = hypervisor.add_server("nowhere", PROJECT, host="").id
    sent = [
        event("volume-extended", server, tag=UNKNOWN), event("volume-extended", server),
        event("volume-reimaged", server), event("volume-reimaged", server, tag=UNKNOWN, status="in-progress"),
        event("network-changed", UNKNOWN), event("power-update", nowhere, tag="POWER_ON"),
    ]  # fmt: skip
    answer = cinder.at("2.93").post(EVENTS, {"events": sent})
    assert answer.status_code == 207
    codes = [200, 400, 400, 200, 404, 422]
    words = {200: "completed"}
    assert answer.json["events"] == [
        {**one, "status": words.get(code, "failed"), "code": code} for one, code in zip(sent, codes, strict=True)
    ]
    none = cinder.at("2.93").post(EVENTS, {"events": [event("network-changed", UNKNOWN)]})
    assert (none.status_code, "No instances found" in none.text) == (404, True)


@pytest.mark.parametrize(
    ("name", "since"),
    [("network-changed", 1), ("network-vif-plugged", 1), ("network-vif-unplugged", 1), ("network-vif-deleted", 1),
     ("volume-extended", 51), ("power-update", 76), ("accelerator-request-bound", 82), ("volume-reimaged", 93)],
)  # fmt: skip
def test_events_by_version(cinder: Client, server: str, name: str, since: int) -> None:
    sent = {"events": [event(name, server, tag=UNKNOWN)]}
    assert cinder.at(f"2.{since}").post(EVENTS, sent).status_code == 200
    if since > 1:
        assert cinder.at(f"2.{since - 1}").post(EVENTS, sent).status_code == 400


def test_who_may_tell_and_what(client: Client, cinder: Client, admin: Client, nova: Client, server: str) -> None:
    right = event("network-changed", server)
    for somebody, code in ((client, 403), (nova, 200), (admin, 200), (cinder, 200)):
        assert somebody.post(EVENTS, {"events": [right]}).status_code == code
    wrong: dict[str, Any]
    for wrong in (
        {}, {"events": []}, {"events": [{}]}, {"events": right}, {"events": [{**right, "status": "over"}]},
        {"events": [{**right, "more": 1}]}, {"events": [{**right, "server_uuid": "x"}]}, {"events": [right], "more": 1},
        {"events": [event("nonsense", server)]}, {"events": [event("network-changed", server, tag=7)]},
    ):  # fmt: skip
        assert cinder.post(EVENTS, wrong).status_code == 400, wrong


# -- snapshots that servers take

SNAPSHOTS = "/v2.1/os-assisted-volume-snapshots"


def test_assisted_snapshots_are_answered(client: Client, cinder: Client, server: str, volume: str) -> None:
    info = {"snapshot_id": UNKNOWN, "type": "qcow2", "new_file": "f", "id": UNKNOWN}

    def take(of: str, **more: Any) -> Any:
        return cinder.post(SNAPSHOTS, {"snapshot": {"volume_id": of, "create_info": {**info, **more}}})

    taken = take(volume)
    assert (taken.status_code, taken.json) == (200, {"snapshot": {"id": UNKNOWN, "volumeId": volume}})
    free = client.volume()["id"]
    assert take(free).status_code == take(UNKNOWN).status_code == 400
    assert take(volume, type="raw").status_code == take(volume, more=1).status_code == 400
    assert client.post(SNAPSHOTS, {"snapshot": {"volume_id": volume, "create_info": info}}).status_code == 403

    def drop(query: str, who: Client = cinder) -> int:
        return int(who.delete(f"{SNAPSHOTS}/{UNKNOWN}{query}").status_code)

    of = f"?delete_info={json.dumps({'volume_id': volume})}"
    assert drop(of) == drop(f"{of}&more=1") == drop(of, cinder.at("2.75")) == 204
    assert (
        drop(f"{of}&more=1", cinder.at("2.75")) == drop("") == drop("?delete_info=x") == drop("?delete_info=[]") == 400
    )
    assert drop(f"?delete_info={json.dumps({'volume_id': free})}") == 400
    assert drop(of, client) == 403
    assert client.get("/v3/snapshots").json["snapshots"] == []


# -- actions


def test_what_was_done_to_a_server(
    client: Client, reader: Client, admin: Client, stranger: Client, server: str, volume: str
) -> None:
    url = f"/v2.1/servers/{server}/os-instance-actions"
    grown = client.at("3.42").post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 3}})
    client.delete(path(server, volume))
    found = reader.get(url).json["instanceActions"]
    assert [one["action"] for one in found] == ["detach_volume", "extend_volume", "attach_volume"]
    assert set(found[0]) == {
        "action", "instance_uuid", "request_id", "user_id", "project_id", "start_time", "message",
    }  # fmt: skip
    assert found[1]["request_id"] == grown.headers["x-openstack-request-id"]
    extended = f"{url}/{found[1]['request_id']}"
    keys = {"event", "start_time", "finish_time", "result", "traceback"}
    [event] = admin.get(extended).json["instanceAction"]["events"]
    assert (event["event"], event["result"], set(event)) == ("compute_extend_volume", "Success", keys)
    assert "events" not in reader.at("2.50").get(extended).json["instanceAction"]
    [event] = reader.at("2.51").get(extended).json["instanceAction"]["events"]
    assert set(event) == keys - {"traceback"}
    [event] = admin.at("2.84").get(extended).json["instanceAction"]["events"]
    assert set(event) == keys | {"host", "hostId", "details"}
    assert reader.get(f"{url}/req-unknown").status_code == 404
    assert stranger.get(url).status_code == stranger.get(extended).status_code == 404


def test_pages_of_actions(client: Client, server: str) -> None:
    url = f"/v2.1/servers/{server}/os-instance-actions"
    for _ in range(3):
        client.post(path(server), body(client.volume()["id"]))
    newer = client.at("2.58")
    everything = newer.get(url).json["instanceActions"]
    page = newer.get(f"{url}?limit=2").json
    assert page["instanceActions"] == everything[:2]
    [link] = page["links"]
    assert newer.get(link["href"].removeprefix("http://localhost")).json == {"instanceActions": everything[2:]}
    assert client.get(f"{url}?limit=2").json["instanceActions"][2:]  # Ignored at first.
    late = everything[0]["updated_at"]
    assert newer.get(f"{url}?changes-since={late}").json["instanceActions"] == everything[:1]
    assert newer.get(f"{url}?changes-before=2020-01-01T00:00:00Z").json["instanceActions"] == []
    for wrong in ("limit=x", "marker=unknown", "changes-since=x"):
        assert newer.get(f"{url}?{wrong}").status_code == 400, wrong
    assert client.at("2.75").get(f"{url}?nonsense=1").status_code == 400


def test_what_failed_or_was_interrupted_is_told_as_it_ended(
    client: Client, world: World, hypervisor: FakeHypervisor, server: str, volume: str
) -> None:
    url = f"/v2.1/servers/{server}/os-instance-actions"

    def newest() -> Any:
        first = client.get(url).json["instanceActions"][0]
        [event] = client.at("2.84").get(f"{url}/{first['request_id']}").json["instanceAction"]["events"]
        return first["action"], event["result"], event["details"]

    hypervisor.guests[server].holds = True
    assert client.delete(path(server, volume)).status_code == 202
    assert newest() == ("detach_volume", None, None)
    hypervisor.guests[server].holds = False
    settle(world)
    assert newest() == ("detach_volume", "Success", None)
    hypervisor.guests[server].silent = True
    other = client.volume()["id"]
    assert client.post(path(server), body(other)).status_code in (409, 503)
    hypervisor.guests[server].silent = False
    settle(world)
    assert status(client, other) == "available"
    if client.get(url).json["instanceActions"][0]["action"] == "attach_volume":  # It was not refused at once.
        assert newest()[1] == "Error"


def test_actions_are_forgotten(client: Client, world: World, server: str, volume: str) -> None:
    url = f"/v2.1/servers/{server}/os-instance-actions"
    reconcile.forget(world)
    assert len(client.get(url).json["instanceActions"]) == 1
    with world.db.write() as session:
        [row] = session.query(models.ServerAction).all()
        row.started_at -= actions.KEPT
    reconcile.forget(world)
    assert client.get(url).json["instanceActions"] == []
    assert status(client, volume) == "in-use"


# -- one row behind every view


def test_every_view_of_an_attachment_agrees(client: Client, server: str) -> None:
    volume = client.volume()["id"]
    newest = client.at("2.89")
    made = newest.post(path(server), body(volume, tag="data", delete_on_termination=True)).json["volumeAttachment"]
    assert set(made) == {"id", "volumeId", "serverId", "device", "tag", "delete_on_termination"}
    [row] = newest.get(path(server)).json["volumeAttachments"]
    assert row == newest.get(path(server, volume)).json["volumeAttachment"]
    assert {key: row[key] for key in made if key != "id"} == {key: made[key] for key in made if key != "id"}
    [seen] = client.get(f"/v3/volumes/{volume}").json["volume"]["attachments"]
    assert (seen["id"], seen["attachment_id"]) == (volume, row["attachment_id"])
    assert (seen["server_id"], seen["device"]) == (server, row["device"])
    [ref] = client.at("3.27").get("/v3/attachments").json["attachments"]
    assert ref == {"id": row["attachment_id"], "status": "attached", "instance": server, "volume_id": volume}
    shown = client.at("2.3").get(f"/v2.1/servers/{server}").json["server"]["os-extended-volumes:volumes_attached"]
    assert shown == [{"id": volume, "delete_on_termination": True}]


def test_by_the_other_api_a_servers_disk_stays(
    client: Client, nova: Client, hypervisor: FakeHypervisor, server: str, volume: str
) -> None:
    attachment = client.at("2.89").get(path(server, volume)).json["volumeAttachment"]["attachment_id"]
    url = f"/v3/attachments/{attachment}"
    assert client.at("3.27").delete(url).status_code == 409
    action: dict[str, Any]
    for action in ({"os-detach": {}}, {"os-detach": {"attachment_id": attachment}},
                   {"os-terminate_connection": {"connector": {"host": "h"}}}):  # fmt: skip
        assert client.post(f"/v3/volumes/{volume}/action", action).status_code == 409, action
    assert client.post(f"/v3/volumes/{volume}/action", {"os-attach": {
        "instance_uuid": UNKNOWN, "mountpoint": "/dev/vdb"}}).status_code == 400  # fmt: skip
    for at, wrong in (("3.27", {"attachment": {"volume_uuid": volume, "instance_uuid": server}}),):
        assert client.at(at).post("/v3/attachments", wrong).status_code == 400
    assert (status(client, volume), set(hypervisor.guests[server].held)) == ("in-use", {volume})
    # The mark of the older flow can be set and taken back, and nothing moves.
    assert client.post(f"/v3/volumes/{volume}/action", {"os-begin_detaching": {}}).status_code == 202
    assert client.post(f"/v3/volumes/{volume}/action", {"os-roll_detaching": {}}).status_code == 202
    assert (status(client, volume), set(hypervisor.guests[server].held)) == ("in-use", {volume})
    # A service may, and that takes the disk out of the guest.
    assert nova.at("3.27").delete(url).status_code == 200
    assert (status(client, volume), set(hypervisor.guests[server].held)) == ("available", set())
    assert client.get(path(server)).json["volumeAttachments"] == []


# -- capacity


def test_quotas_and_hosts(client: Client, admin: Client, reader: Client, hypervisor: FakeHypervisor) -> None:
    silent = hypervisor.add_server("silent", PROJECT, host="far").id
    hypervisor.add_server("vm", PROJECT)
    hypervisor.guests[silent].silent = True
    url = f"/v2.1/os-quota-sets/{PROJECT}"
    sets = reader.get(url).json["quota_set"]
    assert (sets.pop("id"), set(sets.values())) == (PROJECT, {-1})
    assert {"instances", "cores", "ram", "key_pairs", "injected_files", "floating_ips"} <= sets.keys()
    assert "floating_ips" not in reader.at("2.36").get(url).json["quota_set"]
    assert "injected_files" not in reader.at("2.57").get(f"{url}/defaults").json["quota_set"]
    detail = reader.get(f"{url}/detail").json["quota_set"]
    assert detail["instances"] == {"limit": -1, "in_use": 2, "reserved": 0}
    assert reader.get(f"/v2.1/os-quota-sets/{'c' * 32}").status_code == 403
    assert admin.get(f"/v2.1/os-quota-sets/{'c' * 32}").status_code == 200
    assert client.get("/v2.1/os-services").status_code == 403
    found = {one["host"]: one["state"] for one in admin.get("/v2.1/os-services").json["services"]}
    assert found == {"far": "down", "testhost": "up"}
    assert isinstance(admin.get("/v2.1/os-services").json["services"][0]["id"], int)
    assert isinstance(admin.at("2.53").get("/v2.1/os-services").json["services"][0]["id"], str)


def test_unknown_addresses_are_404_in_json(client: Client) -> None:
    for method, url in (("GET", "/v2.1/os-hypervisors"), ("POST", "/v2.1/servers"), ("GET", "/v2.1/os-volumes")):
        answer = client.request(method, url, {} if method == "POST" else None)
        assert answer.status_code in (404, 405), url
        assert set(answer.json) <= {"itemNotFound", "badMethod"}, url
