# SPDX-License-Identifier: Apache-2.0
"""Unmodified clients do the main job and what surrounds it; what they report and what the guest sees is looked at."""

from __future__ import annotations

import json

import pytest

from clients.conftest import Cloud
from lab.process import LabError

pytestmark = pytest.mark.real


def gone(cloud: Cloud, guest_volume: str) -> None:
    cloud.guest.wait_no_disk(guest_volume)


@pytest.mark.parametrize("kind", ["newest", "debian12"])
def test_openstack_attaches_and_detaches(cloud: Cloud, kind: str) -> None:
    client = cloud.client(kind, "alice")
    # Debian 12's sends compute requests to OS_ENDPOINT, whatever the override says: without a catalogue it finds
    # the volume service only, so the compute half is another service's client there.
    compute = cloud.client("newest" if cloud.keystone is None else kind, "alice")
    name = f"data-{kind}"
    volume = client.openstack("volume", "create", "--size", "1", "--property", "purpose=test", name)["id"]
    assert client.openstack("volume", "show", name)["status"] == "available"
    servers = compute.openstack("server", "list")
    assert [server["Name"] for server in servers if server["ID"] == cloud.guest.uuid] == [cloud.guest.name]
    compute.openstack("server", "add", "volume", cloud.guest.name, name)
    assert cloud.guest.write(cloud.guest.wait_disk(volume), name, 1)
    shown = client.openstack("volume", "show", name)
    assert shown["status"] == "in-use"
    assert shown["attachments"][0]["server_id"] == cloud.guest.uuid
    listed = compute.openstack("server", "volume", "list", cloud.guest.name)
    assert any(volume in entry.values() for entry in listed)
    assert compute.openstack("server", "show", cloud.guest.name)["id"] == cloud.guest.uuid
    with pytest.raises(LabError, match=r"(?i)must be available|status must be"):
        client.openstack("volume", "delete", name)
    compute.openstack("server", "remove", "volume", cloud.guest.name, name)
    gone(cloud, volume)
    assert client.openstack("volume", "show", name)["status"] == "available"
    client.openstack("volume", "delete", name)
    with pytest.raises(LabError, match=r"(?i)no volume|could not be found|not found"):
        client.openstack("volume", "show", name)


def test_openstack_around_volumes(cloud: Cloud) -> None:
    client = cloud.client("newest", "alice")
    first = client.openstack("volume", "create", "--size", "1", "--description", "ein Text", "первый")["id"]
    client.openstack("volume", "create", "--size", "2", "second")
    client.openstack("volume", "set", "--name", "renamed", "--property", "a=b", first)
    assert client.openstack("volume", "show", "renamed")["properties"] == {"a": "b"}
    client.openstack("volume", "unset", "--property", "a", "renamed")
    listed = client.openstack("volume", "list", "--limit", "1")  # The size of a page: it follows the links.
    assert [entry["Name"] for entry in listed] == ["second", "renamed"]
    assert {entry["Size"] for entry in client.openstack("volume", "list")} == {1, 2}
    assert client.openstack("volume", "summary")["Total Count"] == 2
    assert any(entry["Name"] == "__DEFAULT__" for entry in client.openstack("volume", "type", "list"))
    assert client.openstack("availability", "zone", "list", "--volume")[0]["Zone Name"] == "nova"
    shown = client.openstack("limits", "show", "--absolute")
    limits = {entry["Name"].replace("_", "").lower(): entry["Value"] for entry in shown}
    assert (limits["totalvolumesused"], limits["totalgigabytesused"]) == (2, 3)
    admin = cloud.client("newest", "root")
    assert {entry["State"] for entry in admin.openstack("volume", "service", "list")} == {"up"}
    assert admin.openstack("volume", "backend", "pool", "list")
    with pytest.raises(LabError, match=r"(?i)policy doesn't allow|403"):
        client.openstack("volume", "service", "list")
    with pytest.raises(LabError, match=r"(?i)policy doesn't allow|403"):
        cloud.client("newest", "rita").openstack("volume", "create", "--size", "1", "not-for-readers")
    with pytest.raises(LabError, match=r"(?i)no volume|not found"):
        cloud.client("newest", "bob").openstack("volume", "show", first)
    with pytest.raises(LabError, match=r"(?i)exceed"):
        client.openstack("volume", "create", "--size", "100000", "too-large")
    client.openstack("volume", "delete", "renamed", "second")
    assert client.openstack("volume", "list") == []


@pytest.mark.parametrize("kind", ["newest", "debian12"])
def test_cinder(cloud: Cloud, kind: str) -> None:
    client = cloud.client(kind, "alice")
    name = f"cinder-{kind}"
    client.cinder("create", "--name", name, "--metadata", "a=b", "1")
    assert "available" in client.cinder("show", name)
    assert name in client.cinder("list")
    client.cinder("metadata", name, "set", "c=d")
    assert "'c': 'd'" in client.cinder("show", name) or "c : d" in client.cinder("show", name)
    client.cinder("rename", name, f"{name}-2")
    assert "totalVolumesUsed" in client.cinder("absolute-limits")
    assert "__DEFAULT__" in client.cinder("type-list")
    assert "nova" in client.cinder("availability-zone-list")
    assert "cinder-volume" in cloud.client(kind, "root").cinder("service-list")
    client.cinder("delete", f"{name}-2")
    assert name not in client.cinder("list")


SDK = """
import json, openstack, sys
cloud = openstack.connect()
server = sys.argv[1]
volume = cloud.block_storage.create_volume(size=1, name="sdk", metadata={"k/x.y": "v"})
volume = cloud.block_storage.wait_for_status(volume, "available", interval=1, wait=60)
cloud.compute.create_volume_attachment(server, volume_id=volume.id)
volume = cloud.block_storage.wait_for_status(volume, "in-use", interval=1, wait=60)
held = [one.volume_id for one in cloud.compute.volume_attachments(server)]
print(json.dumps([volume.id, held, volume.attachments[0]["device"]]), flush=True)
for kept in (False, True):
    cloud.compute.update_volume_attachment(server, volume.id, delete_on_termination=not kept)
    [one] = cloud.compute.volume_attachments(server)
    assert one.delete_on_termination is not kept, one
cloud.compute.delete_volume_attachment(server, volume.id)
cloud.block_storage.wait_for_status(volume, "available", interval=1, wait=60)
cloud.block_storage.delete_volume(volume)
cloud.block_storage.wait_for_delete(volume, interval=1, wait=60)
print(json.dumps([one.id for one in cloud.block_storage.volumes()]))
"""


def test_openstacksdk(cloud: Cloud) -> None:
    client = cloud.client("newest", "alice")
    first, second = client.run("python", "-c", SDK, cloud.guest.uuid).splitlines()
    volume, held, device = json.loads(first)
    assert held == [volume]
    assert device.startswith("/dev/vd")
    assert volume not in json.loads(second)
    gone(cloud, volume)
