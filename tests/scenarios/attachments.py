# SPDX-License-Identifier: Apache-2.0
"""Attachments, through both APIs."""

from __future__ import annotations

from cinderlite.context import World
from conftest import PROJECT
from scenarios import Call

OPERATIONS = [
    "volume/attachments.index",
    "volume/attachments.detail",
    "volume/attachments.show",
    "compute/volume_attachments.index",
    "compute/volume_attachments.show",
    "compute/volume_attachments.create",
    "compute/volume_attachments.delete",
]


def play(call: Call, world: World) -> None:
    server = world.guests.add_server("vm1", PROJECT)  # type: ignore[attr-defined]
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    held = f"/v2.1/servers/{server.id}/os-volume_attachments"
    call("POST", held, {"volumeAttachment": {"volumeId": volume, "delete_on_termination": True}})
    call("GET", held)
    call("GET", f"{held}/{volume}")
    call("GET", "/v3/attachments/detail")
    attachment = call("GET", "/v3/attachments")["attachments"][0]["id"]
    call("GET", f"/v3/attachments/{attachment}")
    call("DELETE", f"{held}/{volume}")
