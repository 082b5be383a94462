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
]


def play(call: Call, world: World) -> None:
    server = world.guests.add_server("vm1", PROJECT)  # type: ignore[attr-defined]
    for path in (
        "/servers",
        "/servers/detail",
        f"/servers/{server.id}",
        "/flavors",
        "/flavors/detail",
        f"/flavors/{server.flavor.id}",
        "/os-availability-zone",
        "/os-availability-zone/detail",
        "/limits",
        "/extensions",
    ):
        call("GET", f"/v2.1{path}")
