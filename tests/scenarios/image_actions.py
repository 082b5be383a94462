# SPDX-License-Identifier: Apache-2.0
"""Actions on volumes that concern images."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/image_actions.{name}"
    for name in ("set_bootable", "set_metadata", "unset_metadata", "show_metadata", "upload_image", "reimage")
]
NEEDS = "openstack"


def play(call: Call, world: World) -> None:
    del world
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "system"}})["volume"]["id"]
    actions = f"/v3/volumes/{volume}/action"
    call("POST", actions, {"os-set_bootable": {"bootable": True}})
    call("POST", actions, {"os-set_image_metadata": {"metadata": {"os_distro": "debian", "hw_disk_bus": "virtio"}}})
    call("POST", actions, {"os-unset_image_metadata": {"key": "hw_disk_bus"}})
    call("POST", actions, {"os-show_image_metadata": {}})
    image = {"image_name": "system", "disk_format": "qcow2", "container_format": "bare", "visibility": "private"}
    made = call("POST", actions, {"os-volume_upload_image": image})["os-volume_upload_image"]
    call("POST", actions, {"os-reimage": {"image_id": made["image_id"]}})
