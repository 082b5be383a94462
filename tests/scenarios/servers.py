# SPDX-License-Identifier: Apache-2.0
"""Servers and what clients ask around them."""

from __future__ import annotations

from cinderlite.context import World
from conftest import PROJECT
from scenarios import Call

OPERATIONS = [
    "compute/servers.index",
    "compute/servers.detail",
    "compute/servers.show",
    "compute/servers.flavors",
    "compute/servers.flavors_detail",
    "compute/servers.flavor",
    "compute/servers.zones",
    "compute/servers.zones_detail",
    "compute/servers.limits",
    "compute/servers.extensions",
    "compute/diagnostics.show",
    "compute/capacity.quotas",
    "compute/capacity.default_quotas",
    "compute/capacity.quotas_in_detail",
    "compute/capacity.services",
    "compute/launches.show",
]


def play(call: Call, world: World) -> None:
    server = world.guests.add_server("vm1", PROJECT)  # type: ignore[attr-defined]
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "root"}})["volume"]["id"]
    call("POST", f"/v2.1/servers/{server.id}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})
    for path in (
        "/servers",
        "/servers/detail",
        f"/servers/{server.id}",
        f"/servers/{server.id}/diagnostics",
        f"/servers/{server.id}/launch-arguments?boot={volume}",
        "/flavors",
        "/flavors/detail",
        f"/flavors/{server.flavor.id}",
        "/os-availability-zone",
        "/os-availability-zone/detail",
        "/limits",
        "/extensions",
        f"/os-quota-sets/{PROJECT}",
        f"/os-quota-sets/{PROJECT}/defaults",
        f"/os-quota-sets/{PROJECT}/detail",
        "/os-services",
    ):
        call("GET", f"/v2.1{path}")
