# SPDX-License-Identifier: Apache-2.0
"""What drivers and tools ask for one after the other, request by request, on a real guest: final at the first look.

Each of them polls with seconds in between; a state that is not final yet when it looks first costs those. The versions
are those that they send; none where there is none.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from clients.conftest import Cloud
from lab.ceph import Ceph
from lab.process import wait

pytestmark = [
    pytest.mark.real,
    pytest.mark.parametrize(
        "cloud", [pytest.param("http_basic", marks=pytest.mark.xdist_group("http_basic"))], indirect=True
    ),
]

CLUSTER = {"cinder.csi.openstack.org/cluster": "kubernetes"}


class Asked:
    """Makes requests to a cloud as a client does."""

    def __init__(self, cloud: Cloud) -> None:
        self.service = cloud.service
        self.server = cloud.guest.uuid
        self.attachments = f"/v2.1/servers/{self.server}/os-volume_attachments"

    def __call__(self, method: str, path: str, body: Any = None, *, code: int = 200, version: str = "") -> Any:
        answer = self.service.call(method, path, body, version=version)
        assert answer.status == code, f"{method} {path}: {answer.status} {answer.text}"
        return answer.body

    def volume(self, volume: str) -> dict[str, Any]:
        return dict(self("GET", f"/v3/volumes/{volume}")["volume"])

    def servers_of(self, volume: str) -> list[str]:
        return [one["server_id"] for one in self.volume(volume)["attachments"]]


class Csi(Asked):
    """The Cinder CSI driver's controller."""

    def create(self, name: str, volume_type: str | None = None) -> str:
        assert self("GET", f"/v3/volumes/detail?name={name}", version="3.34")["volumes"] == []
        body = {"size": 1, "name": name, "metadata": CLUSTER, "description": "Created by OpenStack Cinder CSI driver"}
        made = self("POST", "/v3/volumes", {"volume": {**body, "volume_type": volume_type}}, code=202)["volume"]["id"]
        assert self.volume(made)["status"] == "available"
        [found] = self("GET", f"/v3/volumes/detail?name={name}", version="3.34")["volumes"]
        assert found["id"] == made
        return str(made)

    def publish(self, volume: str) -> str:
        """The device at which the node gets it."""
        self("GET", f"/v3/volumes/{volume}")
        self("GET", f"/v2.1/servers/{self.server}")
        seen = self.volume(volume)
        if self.server not in self.servers_of(volume):
            version = "2.60" if seen["multiattach"] else ""
            body = {"volumeAttachment": {"volumeId": volume}}
            assert self("POST", self.attachments, body, version=version)["volumeAttachment"]["id"] == volume
        assert self.server in self.servers_of(volume)
        seen = self.volume(volume)
        assert seen["status"] == "in-use"
        [device] = [one["device"] for one in seen["attachments"] if one["server_id"] == self.server]
        assert device.startswith("/dev/vd")
        return str(device)

    def unpublish(self, volume: str) -> None:
        self("GET", f"/v2.1/servers/{self.server}")
        if self.volume(volume)["status"] != "in-use":
            return
        self("DELETE", f"{self.attachments}/{volume}", code=202)
        assert self.server not in self.servers_of(volume)

    def expand(self, volume: str, size: int) -> None:
        body = {"os-extend": {"new_size": size}}
        self("POST", f"/v3/volumes/{volume}/action", body, code=202, version="3.42")
        seen = self.volume(volume)
        assert (seen["status"], seen["size"]) == ("in-use", size)

    def delete(self, volume: str) -> None:
        assert self.volume(volume)["attachments"] == []
        self("DELETE", f"/v3/volumes/{volume}", code=202)
        self("GET", f"/v3/volumes/{volume}", code=404)


def test_csi(cloud: Cloud) -> None:
    csi = Csi(cloud)
    volume = csi.create("pvc-1")
    csi.publish(volume)
    csi.publish(volume)  # Kubernetes asks again whenever it is not sure.
    device = cloud.guest.wait_disk(volume).removeprefix("/dev/")
    csi.expand(volume, 2)
    wait(lambda: cloud.guest.run(f"cat /sys/block/{device}/size").strip() == str(2 * 2**21), timeout=5, what="the size")
    csi("DELETE", f"/v3/volumes/{volume}", code=400)
    csi.unpublish(volume)
    csi.unpublish(volume)
    cloud.guest.wait_no_disk(volume)
    csi("DELETE", f"{csi.attachments}/{volume}", code=404)  # It takes that for done.
    csi.delete(volume)
    gone = "/v2.1/servers/11111111-1111-4111-8111-111111111111"
    csi("GET", gone, code=404)


def test_csi_with_a_volume_for_several_nodes(cloud: Cloud) -> None:
    kind = {"volume_type": {"name": "rwx", "extra_specs": {"multiattach": "<is> True"}}}
    made = cloud.service.call("POST", "/v3/types", kind, user="root")
    assert made.status == 200
    csi = Csi(cloud)
    volume = csi.create("pvc-2", "rwx")
    body = {"volumeAttachment": {"volumeId": volume}}
    csi("POST", csi.attachments, body, code=400, version="2.59")
    csi.publish(volume)
    csi.unpublish(volume)
    csi.delete(volume)
    assert cloud.service.call("DELETE", f"/v3/types/{made.body['volume_type']['id']}", user="root").status == 202


class Terraform(Asked):
    """The provider's resource of a volume on a server; it looks every three seconds, or after ten."""

    def create(self, volume: str, tag: str | None = None) -> dict[str, Any]:
        wanted = {"volumeId": volume, **({"tag": tag} if tag else {})}
        self("POST", self.attachments, {"volumeAttachment": wanted}, version="2.49" if tag else "")
        shown = self("GET", f"{self.attachments}/{volume}")["volumeAttachment"]
        assert self.volume(volume)["status"] == "in-use"
        return dict(shown)

    def destroy_once(self, volume: str) -> tuple[int, int | None]:
        """One turn: whether it is still there, and what becomes of asking once more to take it away."""
        seen = self.service.call("GET", f"{self.attachments}/{volume}").status
        if seen == 404:
            return seen, None
        return seen, self.service.call("DELETE", f"{self.attachments}/{volume}").status


def test_terraform(cloud: Cloud) -> None:
    terraform = Terraform(cloud)
    volume = cloud.service.create(name="tf")
    shown = terraform.create(volume, tag="data")
    assert shown == {"id": volume, "volumeId": volume, "serverId": cloud.guest.uuid, "device": shown["device"]}
    cloud.guest.wait_disk(volume)
    assert terraform.destroy_once(volume) == (200, 202)
    assert terraform.destroy_once(volume) == (404, None)
    # The volume's own resource takes it from its servers first, by the id in its attachments.
    terraform.create(volume)
    cloud.guest.wait_disk(volume)
    for one in terraform.volume(volume)["attachments"]:
        path = f"/v2.1/servers/{one['server_id']}/os-volume_attachments/{one['id']}"
        terraform("DELETE", path, code=202)
    assert terraform.volume(volume)["status"] == "available"
    terraform("DELETE", f"/v3/volumes/{volume}", code=202)
    terraform("GET", f"/v3/volumes/{volume}", code=404)


def test_terraform_with_a_guest_that_lets_go_late(cloud: Cloud) -> None:
    terraform = Terraform(cloud)
    volume = cloud.service.create(name="tf-late")
    terraform.create(volume)
    cloud.guest.wait_disk(volume)
    cloud.guest.pause()
    try:
        assert terraform.destroy_once(volume) == (200, 202)
        for _ in range(2):
            assert terraform.destroy_once(volume) == (200, 400)  # 409 would end it.
        assert (terraform.volume(volume)["status"], terraform.servers_of(volume)) == ("detaching", [])
        assert "reboot the guest" in " ".join(cloud.service.messages(volume))
    finally:
        cloud.guest.resume()
    wait(lambda: terraform.destroy_once(volume) == (404, None), timeout=20, what="the attachment to be gone")
    assert terraform.volume(volume)["status"] == "available"
    terraform("DELETE", f"/v3/volumes/{volume}", code=202)


def test_horizon_and_openstack(cloud: Cloud) -> None:
    asked = Asked(cloud)
    volume = cloud.service.create(name="hz")
    # Horizon: the form, what it sends, the volume's page, and taking it away by the attachment's id.
    offered = asked("GET", "/v2.1/servers/detail?project_id=demo")["servers"]
    assert cloud.guest.uuid in [one["id"] for one in offered if one["status"] in ("ACTIVE", "SHUTOFF")]
    body: dict[str, Any] = {"volumeAttachment": {"volumeId": volume}}
    assert asked("POST", asked.attachments, body)["volumeAttachment"]["device"]
    [held] = asked.volume(volume)["attachments"]
    assert asked("GET", f"/v2.1/servers/{held['server_id']}")["server"]["name"] == cloud.guest.name
    cloud.guest.wait_disk(volume)
    asked("DELETE", f"{asked.attachments}/{held['id']}", code=202)
    assert asked.volume(volume)["status"] == "available"
    # openstack server add volume, server volume list, server volume update, server remove volume
    name = cloud.guest.name
    asked("GET", f"/v2.1/servers/{name}", code=404, version="2.89")
    assert [one["id"] for one in asked("GET", f"/v2.1/servers/detail?name={name}")["servers"]] == [cloud.guest.uuid]
    asked("GET", "/v3/volumes/hz", code=404)
    assert [one["id"] for one in asked("GET", "/v3/volumes/detail?name=hz")["volumes"]] == [volume]
    body = {"volumeAttachment": {"volumeId": volume, "device": None}}
    asked("POST", asked.attachments, body, version="2.89")
    [row] = asked("GET", asked.attachments, version="2.89")["volumeAttachments"]
    assert (row["volumeId"], row["delete_on_termination"]) == (volume, False)
    body = {"volumeAttachment": {"volumeId": volume, "delete_on_termination": True}}
    asked("PUT", f"{asked.attachments}/{volume}", body, code=202, version="2.89")
    [row] = asked("GET", asked.attachments, version="2.89")["volumeAttachments"]
    assert row["delete_on_termination"] is True
    cloud.guest.wait_disk(volume)
    asked("DELETE", f"{asked.attachments}/{volume}", code=202, version="2.89")
    assert asked.volume(volume)["status"] == "available"
    asked("DELETE", f"/v3/volumes/{volume}", code=202)


def test_an_image_that_grew_by_itself_is_shown_to_its_guest(cloud: Cloud, ceph: Ceph) -> None:
    asked = Asked(cloud)
    volume = cloud.service.create(name="grown")
    asked("POST", asked.attachments, {"volumeAttachment": {"volumeId": volume}})
    device = cloud.guest.wait_disk(volume).removeprefix("/dev/")
    ceph.rbd("resize", f"{ceph.pool}/volume-{volume}", "--size", "3G", "--no-progress")
    event = {"name": "volume-extended", "server_uuid": cloud.guest.uuid, "tag": volume}
    told = cloud.service.call(
        "POST", "/v2.1/os-server-external-events", {"events": [event]}, user="root", version="2.51"
    )
    assert (told.status, told.body["events"][0]["code"]) == (200, 200)
    wait(lambda: cloud.guest.run(f"cat /sys/block/{device}/size").strip() == str(3 * 2**21), timeout=5, what="the size")
    info = json.loads(ceph.rbd("info", f"{ceph.pool}/volume-{volume}", "--format", "json"))
    assert info["size"] == 3 * 2**30
    asked("DELETE", f"{asked.attachments}/{volume}", code=202)
    asked("DELETE", f"/v3/volumes/{volume}", code=202)
