# SPDX-License-Identifier: Apache-2.0
"""Attachments, through both APIs."""

from __future__ import annotations

import json

from cinderlite.context import World
from conftest import PROJECT
from scenarios import Call

OPERATIONS = [
    "volume/attachments.index",
    "volume/attachments.detail",
    "volume/attachments.show",
    "volume/attachments.create",
    "volume/attachments.update",
    "volume/attachments.complete",
    "volume/attachments.delete",
    "compute/volume_attachments.index",
    "compute/volume_attachments.show",
    "compute/volume_attachments.create",
    "compute/volume_attachments.update",
    "compute/volume_attachments.delete",
    "compute/external_events.create",
    "compute/assisted_snapshots.create",
    "compute/assisted_snapshots.delete",
    "compute/instance_actions.index",
    "compute/instance_actions.show",
]


def play(call: Call, world: World) -> None:
    other = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "logs"}})["volume"]["id"]
    instance = "5f0c2b34-0000-4000-8000-0000000000aa"
    body = {"attachment": {"volume_uuid": other, "instance_uuid": instance, "mode": "rw"}}
    made = call("POST", "/v3/attachments", body)["attachment"]["id"]
    connector = {"host": "compute1", "ip": "192.0.2.7", "multipath": False, "mountpoint": "/dev/vdb"}
    call("PUT", f"/v3/attachments/{made}", {"attachment": {"connector": connector}})
    call("POST", f"/v3/attachments/{made}/action", {"os-complete": None})
    call("DELETE", f"/v3/attachments/{made}")
    server = world.guests.add_server("vm1", PROJECT)  # type: ignore[attr-defined]
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    held = f"/v2.1/servers/{server.id}/os-volume_attachments"
    call("POST", held, {"volumeAttachment": {"volumeId": volume, "delete_on_termination": True}})
    call("GET", held)
    call("GET", f"{held}/{volume}")
    call("GET", "/v3/attachments/detail")
    attachment = call("GET", "/v3/attachments")["attachments"][0]["id"]
    call("GET", f"/v3/attachments/{attachment}")
    call("PUT", f"{held}/{volume}", {"volumeAttachment": {"volumeId": volume, "delete_on_termination": False}})
    event = {"name": "volume-extended", "server_uuid": server.id, "tag": volume}
    call("POST", "/v2.1/os-server-external-events", {"events": [event]})
    taken = {"snapshot_id": instance, "type": "qcow2", "new_file": "volume.1"}
    snapshot = {"snapshot": {"volume_id": volume, "create_info": {"id": instance, **taken}}}
    call("POST", "/v2.1/os-assisted-volume-snapshots", snapshot)
    call("DELETE", f"/v2.1/os-assisted-volume-snapshots/{instance}?delete_info={json.dumps({'volume_id': volume})}")
    done = f"/v2.1/servers/{server.id}/os-instance-actions"
    action = call("GET", done)["instanceActions"][-1]
    call("GET", f"{done}/{action['request_id']}")
    call("DELETE", f"{held}/{volume}")
