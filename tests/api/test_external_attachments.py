# SPDX-License-Identifier: Apache-2.0
"""Attachments that somebody else makes: Nova's two ways, bare hosts, who may end what, and what a volume then shows."""

from __future__ import annotations

import concurrent.futures
import threading
import uuid
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.core import reconcile
from cinderlite.db import models
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

SERVER = "5f0c2b34-1111-4222-8333-0123456789ab"
CONNECTOR = {"host": "compute1", "ip": "192.0.2.7", "multipath": False, "mountpoint": "/dev/vdb"}


def shown(client: Client, volume: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v3/volumes/{volume}").json["volume"]
    return found


def status(client: Client, volume: str) -> str:
    return str(shown(client, volume)["status"])


def reserve(client: Client, volume: str, server: str | None = SERVER, **more: Any) -> Any:
    body = {"volume_uuid": volume, **({"instance_uuid": server} if server else {}), **more}
    return client.at("3.71").post("/v3/attachments", {"attachment": body})


def reserved(client: Client, volume: str, server: str | None = SERVER, **more: Any) -> dict[str, Any]:
    answer = reserve(client, volume, server, **more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json["attachment"])


def connect(client: Client, attachment: str, **more: Any) -> Any:
    body = {"attachment": {"connector": {**CONNECTOR, **more}}}
    return client.at("3.71").put(f"/v3/attachments/{attachment}", body)


def complete(client: Client, attachment: str) -> int:
    body = {"os-complete": None}
    return int(client.at("3.71").post(f"/v3/attachments/{attachment}/action", body).status_code)


def end(client: Client, attachment: str) -> Any:
    return client.at("3.71").delete(f"/v3/attachments/{attachment}")


def act(client: Client, volume: str, action: str, **body: Any) -> Any:
    return client.post(f"/v3/volumes/{volume}/action", {action: body})


def attached(client: Client, volume: str, server: str = SERVER, **more: Any) -> str:
    made: str = reserved(client, volume, server)["id"]
    assert connect(client, made, **more).status_code == 200
    assert complete(client, made) == 204
    return made


def shared(world: World, client: Client, **fields: Any) -> str:
    """A volume that several servers may hold."""
    with world.db.write() as session:
        rows = [models.ExtraSpec(key="multiattach", value="<is> True")]
        session.add(models.VolumeType(name=f"shared-{uuid.uuid4()}", extra_spec_rows=rows))
        session.flush()
        name = session.query(models.VolumeType.name).filter(models.VolumeType.name.like("shared-%")).first()
    assert name is not None
    volume = client.volume(volume_type=name[0], **fields)
    assert volume["multiattach"] is True
    return str(volume["id"])


# -- Nova's way


def test_nova_attaches_and_detaches(client: Client, nova: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    made = reserved(nova, volume)
    assert made == {
        "id": made["id"], "status": "reserved", "instance": SERVER, "volume_id": volume, "attached_at": "",
        "detached_at": "", "attach_mode": "null", "connection_info": {},
    }  # fmt: skip
    assert (status(client, volume), shown(client, volume)["attachments"]) == ("reserved", [])
    answer = connect(nova, made["id"]).json["attachment"]
    assert (answer["status"], answer["attach_mode"], status(client, volume)) == ("attaching", "rw", "attaching")
    assert answer["connection_info"] == {
        "driver_volume_type": "rbd", "attachment_id": made["id"], "enforce_multipath": False,
        "name": f"volumes/volume-{volume}", "hosts": ["127.0.0.1"], "ports": ["6789"], "cluster_name": "ceph",
        "auth_enabled": True, "auth_username": "cinderlite", "secret_type": "ceph", "secret_uuid": cluster.cluster_id,
        "volume_id": volume, "discard": True, "keyring": None, "qos_specs": None, "access_mode": "rw",
        "encrypted": False, "cacheable": False,
    }  # fmt: skip
    assert complete(nova, made["id"]) == 204
    now = shown(client, volume)
    assert now["status"] == "in-use"
    assert [(one["id"], one["attachment_id"], one["server_id"], one["device"]) for one in now["attachments"]] == [
        (volume, made["id"], SERVER, "/dev/vdb")
    ]
    assert act(nova, volume, "os-begin_detaching").status_code == 202
    assert status(client, volume) == "detaching"
    assert end(nova, made["id"]).json == {"attachments": []}
    assert (status(client, volume), end(nova, made["id"]).status_code) == ("available", 404)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202


def test_no_key_of_ceph_leaves(client: Client, admin: Client, nova: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    made = attached(nova, volume)
    assert cluster.base64_key is not None
    for who in (client, admin, nova):
        texts = [
            act(who, volume, "os-initialize_connection", connector=CONNECTOR).text,
            who.at("3.71").get(f"/v3/attachments/{made}").text,
            who.at("3.71").get("/v3/attachments/detail").text,
        ]
        for text in texts:
            assert f"volume-{volume}" in text
            assert cluster.base64_key not in text


def test_a_failed_attach_gives_the_volume_back(client: Client, nova: Client) -> None:
    volume = client.volume()["id"]
    for steps in (0, 1, 2):
        made = reserved(nova, volume)["id"]
        if steps > 0:
            connect(nova, made)
        if steps > 1:
            complete(nova, made)
        assert end(nova, made).status_code == 200
        assert status(client, volume) == "available"
    assert client.at("3.27").get("/v3/attachments").json["attachments"] == []


def test_a_connector_at_once(client: Client) -> None:
    volume = client.volume()["id"]
    made = reserved(client, volume, connector={**CONNECTOR, "mode": "ro"})
    assert (made["status"], made["attach_mode"], status(client, volume)) == ("attaching", "ro", "attaching")
    assert made["connection_info"]["access_mode"] == "ro"
    other = client.volume()["id"]
    empty = reserved(client, other, None, connector={}, mode="ro")
    assert (empty["status"], empty["instance"], empty["attach_mode"]) == ("reserved", None, "ro")
    assert connect(client, empty["id"], mode="rw").json["attachment"]["connection_info"]["access_mode"] == "ro"


def test_a_server_moves_to_another_host(client: Client, nova: Client) -> None:
    volume = client.volume()["id"]
    here = attached(nova, volume)
    there = reserved(nova, volume)["id"]
    assert status(client, volume) == "in-use"
    assert connect(nova, there).status_code == 409
    assert connect(nova, there, host="compute2").status_code == 200
    assert complete(nova, there) == 204
    assert [one["id"] for one in end(nova, here).json["attachments"]] == [there]
    assert status(client, volume) == "in-use"
    other = reserve(nova, volume, str(uuid.uuid4()))
    assert (other.status_code, "but the current status is in-use" in other.text) == (400, True)
    end(nova, there)
    assert status(client, volume) == "available"


def test_what_remains_decides(client: Client, nova: Client) -> None:
    volume = client.volume()["id"]
    first, second = reserved(nova, volume)["id"], reserved(nova, volume)["id"]
    connect(nova, first)
    assert status(client, volume) == "attaching"
    end(nova, first)
    assert status(client, volume) == "reserved"
    end(nova, second)
    assert status(client, volume) == "available"


def test_two_at_once_of_whom_one_wins(client: Client) -> None:
    volume = client.volume()["id"]
    gate = threading.Barrier(4)

    def ask() -> int:
        gate.wait(10)
        return int(reserve(client, volume, str(uuid.uuid4())).status_code)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ends = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert sorted(ends) == [200, 400, 400, 400]
    assert len(client.at("3.27").get("/v3/attachments").json["attachments"]) == 1


def test_two_servers_that_connect_at_once(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = shared(world, client)
    attached(client, volume, str(uuid.uuid4()))
    assert cluster.stored[f"volume-{volume}"][0] in cluster.shared
    made = reserved(client, volume, str(uuid.uuid4()), connector={"host": "compute2"})
    assert made["status"] == "attaching"


# -- what is refused


@pytest.mark.parametrize(
    "body",
    [
        {}, {"attachment": {}}, {"attachment": {"volume_uuid": "x"}}, {"volume_uuid": SERVER},
        {"attachment": {"volume_uuid": SERVER, "instance_uuid": "x"}},
        {"attachment": {"volume_uuid": SERVER, "connector": "x"}},
        {"attachment": {"volume_uuid": SERVER, "mode": "x"}},
        {"attachment": {"volume_uuid": SERVER, "extra": 1}},
        {"attachment": {"volume_uuid": SERVER}, "extra": 1},
    ],
)  # fmt: skip
def test_bodies_that_are_no_attachment(client: Client, body: Any) -> None:
    assert client.at("3.54").post("/v3/attachments", body).status_code == 400


def test_who_may_and_since_when(client: Client, reader: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    body = {"attachment": {"volume_uuid": volume, "mode": "rw"}}
    assert client.at("3.53").post("/v3/attachments", body).status_code == 400
    del body["attachment"]["mode"]
    assert client.at("3.26").post("/v3/attachments", body).status_code == 404
    assert reserve(reader, volume).status_code == 403
    assert reserve(stranger, volume).status_code == 404
    assert reserve(client, SERVER).status_code == 404
    made = client.at("3.27").post("/v3/attachments", body).json["attachment"]["id"]
    for who, code in ((reader, 403), (stranger, 404)):
        assert connect(who, made).status_code == code
        assert complete(who, made) == code
        assert end(who, made).status_code == code
    assert client.at("3.43").post(f"/v3/attachments/{made}/action", {"os-complete": {}}).status_code == 404
    for connector in ({}, None, "x", {"host": 1}, {"host": "x" * 256}):
        update = {"attachment": {"connector": connector}}
        assert client.at("3.27").put(f"/v3/attachments/{made}", update).status_code == 400, connector
    assert status(client, volume) == "reserved"
    assert end(admin, made).status_code == 200


def test_a_volume_that_is_not_free(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    for word in ("error", "attaching", "uploading", "maintenance", "error_extending"):
        act(admin, volume, "os-reset_status", status=word)
        answer = reserve(client, volume)
        assert (answer.status_code, "status" in answer.text) == (400, True), word
    act(admin, volume, "os-reset_status", status="available")
    made = reserved(client, volume)["id"]
    act(admin, volume, "os-reset_status", status="error")
    assert connect(client, made).status_code == 409
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400


def test_nothing_is_begun_while_ceph_is_down(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.down = True
    assert reserve(client, volume, connector=CONNECTOR).status_code == 503
    assert status(client, volume) == "available"
    made = reserved(client, volume)["id"]
    assert connect(client, made).status_code == 503
    assert status(client, volume) == "reserved"
    assert end(client, made).status_code == 200


# -- what a server uses


def test_a_disk_of_ours_is_detached_through_the_compute_api(
    client: Client, admin: Client, nova: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm1", PROJECT).id
    volume = client.volume()["id"]
    path = f"/v2.1/servers/{server}/os-volume_attachments"
    assert client.post(path, {"volumeAttachment": {"volumeId": volume}}).status_code == 200
    made = shown(client, volume)["attachments"][0]["attachment_id"]
    words = f"ConflictNovaUsingAttachment: Detach volume from instance {server} using the Compute API"
    for who in (client, admin):
        refusals = [
            end(who, made), act(who, volume, "os-detach"), act(who, volume, "os-detach", attachment_id=made),
            act(who, volume, "os-terminate_connection", connector=CONNECTOR), connect(who, made),
        ]  # fmt: skip
        for answer in refusals:
            assert (answer.status_code, answer.json["conflictingRequest"]["message"]) == (409, words)
    assert act(client, volume, "os-force_detach", attachment_id=made).status_code == 403
    assert reserve(client, volume, server).status_code == 400
    assert act(client, volume, "os-attach", instance_uuid=SERVER, mountpoint="/dev/vdb").status_code == 400
    assert complete(client, made) == 204
    assert (status(client, volume), volume in hypervisor.guests[server].held) == ("in-use", True)
    # The mark alone does nothing to the disk.
    assert act(client, volume, "os-begin_detaching").status_code == 202
    settle(world)
    assert act(client, volume, "os-roll_detaching").status_code == 202
    assert (status(client, volume), volume in hypervisor.guests[server].held) == ("in-use", True)
    assert end(nova, made).json == {"attachments": []}
    assert (status(client, volume), volume in hypervisor.guests[server].held) == ("available", False)


def test_an_attachment_to_a_server_that_is_no_more_can_be_ended(client: Client, hypervisor: FakeHypervisor) -> None:
    server = hypervisor.add_server("vm1", PROJECT).id
    volume = client.volume()["id"]
    client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})
    made = shown(client, volume)["attachments"][0]["attachment_id"]
    del hypervisor.guests[server]
    assert end(client, made).status_code == 200
    assert status(client, volume) == "available"


def test_only_a_service_ends_what_somebody_has_open(client: Client, nova: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    made = attached(nova, volume)
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.7:0/1"]
    for answer in (
        end(client, made),
        act(client, volume, "os-detach"),
        act(client, volume, "os-terminate_connection", connector=None),
    ):
        assert (answer.status_code, SERVER in answer.text) == (409, True)
    assert status(client, volume) == "in-use"
    assert end(nova, made).status_code == 200
    assert status(client, volume) == "available"
    cluster.watchers.clear()
    assert end(client, attached(nova, volume)).status_code == 200


def test_the_reconciler_leaves_them_alone(
    client: Client, nova: Client, world: World, hypervisor: FakeHypervisor
) -> None:
    ours = hypervisor.add_server("vm1", PROJECT).id
    volumes = [client.volume()["id"] for _ in range(3)]
    reserved(nova, volumes[0])
    connect(nova, reserved(nova, volumes[1], ours)["id"])
    attached(nova, volumes[2], ours)
    before = [shown(client, volume) for volume in volumes]
    settle(world)
    assert reconcile.once(world) == 0
    assert [shown(client, volume) for volume in volumes] == before
    assert hypervisor.guests[ours].held == {}
    assert client.get(f"/v2.1/servers/{ours}/os-volume_attachments").json["volumeAttachments"] == []
    assert client.delete(f"/v2.1/servers/{ours}/os-volume_attachments/{volumes[2]}").status_code == 404


def test_a_volume_that_is_busy_goes_back_to_what_its_attachments_say(
    client: Client, nova: Client, world: World, cluster: FakeCluster
) -> None:
    volume = client.volume()["id"]
    made = attached(nova, volume)
    cluster.stuck = True
    assert client.at("3.42").post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 2}}).status_code == 202
    assert status(client, volume) == "extending"
    assert end(nova, made).status_code == 200
    assert status(client, volume) == "extending"
    cluster.release()
    settle(world)
    assert (status(client, volume), shown(client, volume)["size"]) == ("available", 2)


# -- lists


def test_lists(client: Client, stranger: Client, admin: Client) -> None:
    volumes = [client.volume()["id"] for _ in range(3)]
    made = [reserved(client, volume, str(uuid.uuid4()))["id"] for volume in volumes]
    connect(client, made[2])
    theirs = reserved(stranger, stranger.volume()["id"])["id"]

    def ids(query: str, who: Client = client) -> list[str]:
        return [one["id"] for one in who.at("3.71").get(f"/v3/attachments?{query}").json["attachments"]]

    assert ids("sort=created_at:asc") == made
    assert ids("limit=2") == made[:0:-1]
    assert ids(f"limit=2&marker={made[1]}") == [made[0]]
    assert ids("offset=2") == [made[0]]
    assert ids("status=reserved&sort_key=id&sort_dir=asc") == sorted(made[:2])
    assert ids("attach_status=attaching") == [made[2]]
    assert ids(f"volume_id={volumes[1]}") == [made[1]]
    assert ids(f"instance_id={SERVER}", stranger) == [theirs]
    assert ids("all_tenants=1") == made[::-1]
    assert set(ids("all_tenants=1", admin)) == {*made, theirs}
    assert ids("", admin) == made[::-1]
    assert client.at("3.31").get("/v3/attachments?nonsense=1").status_code == 400
    assert client.at("3.71").get("/v3/attachments?sort=nonsense").status_code == 400
    assert client.at("3.71").get(f"/v3/attachments?marker={SERVER}").status_code == 404
    page = client.at("3.71").get("/v3/attachments/detail?limit=1").json
    assert set(page) == {"attachments"}
    assert page["attachments"][0]["connection_info"]["attachment_id"] == made[2]
    assert client.at("3.71").get(f"/v3/attachments/{theirs}").status_code == 404


# -- the older actions


def test_the_older_way_of_nova(client: Client, nova: Client) -> None:
    volume = client.volume()["id"]
    assert act(nova, volume, "os-reserve").status_code == 202
    assert status(client, volume) == "attaching"
    assert act(nova, volume, "os-reserve").status_code == 400
    answer = act(nova, volume, "os-initialize_connection", connector={"host": "compute1", "enforce_multipath": True})
    info = answer.json["connection_info"]
    assert (answer.status_code, set(info)) == (200, {"driver_volume_type", "data", "enforce_multipath"})
    assert (info["driver_volume_type"], info["enforce_multipath"]) == ("rbd", True)
    assert info["data"]["name"] == f"volumes/volume-{volume}"
    assert "attachment_id" not in info["data"]
    assert status(client, volume) == "attaching"
    for _ in range(2):  # The same again is fine.
        assert act(nova, volume, "os-attach", instance_uuid=SERVER, mountpoint="/dev/vdc").status_code == 202
    now = shown(client, volume)
    assert (now["status"], len(now["attachments"])) == ("in-use", 1)
    assert (now["attachments"][0]["device"], now["attachments"][0]["server_id"]) == ("/dev/vdc", SERVER)
    assert now["metadata"] == {"attached_mode": "rw"}
    assert act(nova, volume, "os-begin_detaching").status_code == 202
    assert act(nova, volume, "os-begin_detaching").status_code == 400
    assert act(nova, volume, "os-roll_detaching").status_code == 202
    assert status(client, volume) == "in-use"
    assert act(nova, volume, "os-begin_detaching").status_code == 202
    assert act(nova, volume, "os-terminate_connection", connector={"host": "compute1"}).status_code == 202
    made = now["attachments"][0]["attachment_id"]
    assert act(nova, volume, "os-detach", attachment_id=made).status_code == 202
    now = shown(client, volume)
    assert (now["status"], now["attachments"], now["metadata"]) == ("available", [], {})
    assert act(nova, volume, "os-detach", attachment_id=made).status_code == 202


def test_a_reservation_is_taken_back(client: Client) -> None:
    volume = client.volume()["id"]
    assert act(client, volume, "os-unreserve").status_code == 202
    assert act(client, volume, "os-roll_detaching").status_code == 202
    assert status(client, volume) == "available"
    assert act(client, volume, "os-begin_detaching").status_code == 400
    act(client, volume, "os-reserve")
    assert client.post(f"/v3/volumes/{volume}/action", {"os-unreserve": None}).status_code == 202
    assert status(client, volume) == "available"


def test_a_detach_that_says_nothing(client: Client) -> None:
    volume = client.volume()["id"]
    act(client, volume, "os-attach", host_name="h", mountpoint="/dev/vdb")
    assert client.post(f"/v3/volumes/{volume}/action", {"os-detach": ""}).status_code == 400
    assert client.post(f"/v3/volumes/{volume}/action", {"os-detach": None}).status_code == 202
    assert status(client, volume) == "available"


def test_a_host_of_its_own(client: Client, admin: Client, nova: Client) -> None:
    volume = client.volume()["id"]
    assert act(client, volume, "os-attach", host_name="store1", mountpoint="/dev/rbd0").status_code == 202
    hosts = {who: shown(one, volume)["attachments"][0]["host_name"] for who, one in
             (("member", client), ("admin", admin), ("service", nova))}  # fmt: skip
    assert hosts == {"member": None, "admin": "store1", "service": "store1"}
    assert shown(client, volume)["attachments"][0]["server_id"] is None
    assert act(client, volume, "os-attach", host_name="store2", mountpoint="/dev/rbd0").status_code == 400
    assert act(client, volume, "os-detach").status_code == 202
    assert status(client, volume) == "available"


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("os-attach", {"mountpoint": "/dev/vdb"}), ("os-attach", {"host_name": "a"}),
        ("os-attach", {"host_name": "a", "mountpoint": ""}), ("os-attach", {"instance_uuid": "x", "mountpoint": "/d"}),
        ("os-attach", {"host_name": "a", "mountpoint": "/d", "mode": "x"}),
        ("os-attach", {"host_name": "a", "mountpoint": "/d", "extra": 1}),
        ("os-detach", {"attachment_id": "x"}), ("os-detach", {"extra": 1}),
        ("os-initialize_connection", {}), ("os-initialize_connection", {"connector": None}),
        ("os-terminate_connection", {}), ("os-terminate_connection", {"connector": 1}),
        ("os-update_readonly_flag", {}), ("os-update_readonly_flag", {"readonly": "maybe"}),
    ],
)  # fmt: skip
def test_bodies_of_actions(client: Client, action: str, body: dict[str, Any]) -> None:
    volume = client.volume()["id"]
    assert act(client, volume, action, **body).status_code == 400
    assert status(client, volume) == "available"


def test_who_may_act(client: Client, reader: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    actions: dict[str, Any] = {
        "os-reserve": {}, "os-unreserve": {}, "os-begin_detaching": {}, "os-roll_detaching": {}, "os-detach": {},
        "os-attach": {"host_name": "a", "mountpoint": "/d"}, "os-initialize_connection": {"connector": {}},
        "os-terminate_connection": {"connector": {}}, "os-update_readonly_flag": {"readonly": True},
    }  # fmt: skip
    for name, body in actions.items():
        assert act(reader, volume, name, **body).status_code == 403, name
        assert act(stranger, volume, name, **body).status_code == 404, name
    assert act(client, volume, "os-force_detach").status_code == 403
    act(admin, volume, "os-reset_status", status="maintenance")
    for name in ("os-attach", "os-detach", "os-initialize_connection", "os-update_readonly_flag"):
        assert act(client, volume, name, **actions[name]).status_code == 400, name
    assert status(client, volume) == "maintenance"


def test_force_detach(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    act(client, volume, "os-attach", instance_uuid=SERVER, mountpoint="/dev/vdb")
    made = shown(client, volume)["attachments"][0]["attachment_id"]
    act(admin, volume, "os-reset_status", status="error")
    answer = act(admin, volume, "os-force_detach", attachment_id=made, connector=None)
    assert (answer.status_code, shown(client, volume)["attachments"]) == (202, [])


def test_an_attachment_of_another_volume_stays(client: Client) -> None:
    one, two = client.volume()["id"], client.volume()["id"]
    act(client, two, "os-attach", host_name="a", mountpoint="/d")
    made = shown(client, two)["attachments"][0]["attachment_id"]
    assert act(client, one, "os-detach", attachment_id=made).status_code == 400
    assert status(client, two) == "in-use"


# -- only reading


def test_readonly(client: Client, hypervisor: FakeHypervisor) -> None:
    volume, other = client.volume(metadata={"a": "1"})["id"], client.volume(metadata={"a": "1"})["id"]
    assert act(client, volume, "os-update_readonly_flag", readonly=True).status_code == 202
    assert shown(client, volume)["metadata"] == {"a": "1", "readonly": "True"}
    assert client.get(f"/v3/volumes/{volume}/metadata").json["metadata"] == {"a": "1"}

    def found(pairs: str) -> list[str]:
        return [one["id"] for one in client.get(f"/v3/volumes?metadata={pairs}").json["volumes"]]

    assert found("{'readonly':'True','a':'1'}") == [volume]
    assert (found("{'readonly':'False'}"), found("{'readonly':'x'}")) == ([], [])
    assert set(found("{'a':'1'}")) == {volume, other}
    refused = act(client, volume, "os-attach", instance_uuid=SERVER, mountpoint="/dev/vdb", mode="rw")
    assert (refused.status_code, status(client, volume)) == (400, "available")
    info = act(client, volume, "os-initialize_connection", connector={}).json["connection_info"]
    assert info["data"]["access_mode"] == "ro"
    assert reserved(client, volume)["attach_mode"] == "ro"
    assert act(client, volume, "os-update_readonly_flag", readonly=False).status_code == 400
    assert act(client, other, "os-update_readonly_flag", readonly="true").status_code == 202
    server = hypervisor.add_server("vm1", PROJECT).id
    client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": other}})
    assert hypervisor.guests[server].held[other].read_only
    client.delete(f"/v2.1/servers/{server}/os-volume_attachments/{other}")
    assert act(client, other, "os-update_readonly_flag", readonly=False).status_code == 202
    assert shown(client, other)["metadata"] == {"a": "1", "readonly": "False"}


# -- several servers


def test_several_servers_of_others(client: Client, world: World, admin: Client) -> None:
    volume = shared(world, client)
    servers = [str(uuid.uuid4()) for _ in range(2)]
    first = attached(client, volume, servers[0])
    second = reserved(client, volume, servers[1])["id"]
    assert status(client, volume) == "reserved"
    assert reserve(client, volume, str(uuid.uuid4())).status_code == 400
    connect(client, second)
    complete(client, second)
    assert [one["server_id"] for one in shown(client, volume)["attachments"]] == servers
    assert act(client, volume, "os-detach").status_code == 400
    assert [one["id"] for one in end(client, first).json["attachments"]] == [second]
    assert status(client, volume) == "in-use"
    assert act(admin, volume, "os-force_detach", attachment_id=second).status_code == 202
    assert status(client, volume) == "available"
    act(client, volume, "os-attach", host_name="a", mountpoint="/d")
    assert act(client, volume, "os-reserve").status_code == 202
    act(client, volume, "os-unreserve")
    assert status(client, volume) == "in-use"


@pytest.mark.parametrize("how", ["os-detach", "os-force_detach"])
def test_whose_attachment_ends_is_in_no_error_any_more(client: Client, admin: Client, world: World, how: str) -> None:
    volume, several = client.volume()["id"], shared(world, client)
    for one in (volume, several, several):
        assert act(client, one, "os-attach", instance_uuid=str(uuid.uuid4()), mountpoint="/d").status_code == 202
    for one, rest in ((volume, "available"), (several, "in-use")):
        attachment = shown(client, one)["attachments"][0]["attachment_id"]
        act(admin, one, "os-reset_status", status="error")
        assert status(client, one) == "error"
        assert act(admin, one, how, attachment_id=attachment).status_code == 202
        assert status(client, one) == rest
    free = client.volume()["id"]
    act(admin, free, "os-reset_status", status="error")
    assert act(admin, free, how).status_code == 202
    assert status(client, free) == "error"


def test_a_disk_in_two_of_our_servers(
    client: Client, world: World, hypervisor: FakeHypervisor, cluster: FakeCluster
) -> None:
    volume = shared(world, client)
    one, two = (hypervisor.add_server(name, PROJECT).id for name in ("vm1", "vm2"))

    def path(server: str) -> str:
        return f"/v2.1/servers/{server}/os-volume_attachments"

    for server in (one, two):
        assert client.at("2.59").post(path(server), {"volumeAttachment": {"volumeId": volume}}).status_code == 400
        assert client.at("2.60").post(path(server), {"volumeAttachment": {"volumeId": volume}}).status_code == 200
        cluster.watchers.setdefault(f"volume-{volume}", []).append(server)
        assert hypervisor.guests[server].held[volume].shared
        assert status(client, volume) == "in-use"
    assert cluster.stored[f"volume-{volume}"][0] in cluster.shared
    assert client.post(path(one), {"volumeAttachment": {"volumeId": volume}}).status_code == 400
    assert [each["server_id"] for each in shown(client, volume)["attachments"]] == [one, two]
    hypervisor.guests[one].gone = True
    settle(world)
    assert [each["server_id"] for each in shown(client, volume)["attachments"]] == [two]
    assert client.delete(f"{path(two)}/{volume}").status_code == 202
    assert status(client, volume) == "available"


def test_a_disk_for_one_goes_into_one_server(client: Client, hypervisor: FakeHypervisor, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    one, two = (hypervisor.add_server(name, PROJECT).id for name in ("vm1", "vm2"))
    body = {"volumeAttachment": {"volumeId": volume}}
    gate = threading.Barrier(2)

    def ask(server: str) -> int:
        gate.wait(10)
        return int(client.post(f"/v2.1/servers/{server}/os-volume_attachments", body).status_code)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ends = sorted(future.result() for future in [pool.submit(ask, server) for server in (one, two)])
    assert ends == [200, 400]
    [holder] = [server for server in (one, two) if hypervisor.guests[server].held]
    assert not hypervisor.guests[holder].held[volume].shared
    assert cluster.shared == set()
