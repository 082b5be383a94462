# SPDX-License-Identifier: Apache-2.0
"""Hosts, clusters, and interrupted work."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    "volume/hosts.index",
    "volume/hosts.show",
    "volume/hosts.update",
    "volume/clusters.index",
    "volume/clusters.detail",
    "volume/clusters.show",
    "volume/clusters.enable",
    "volume/clusters.disable",
    "volume/workers.cleanup",
]


def play(call: Call, world: World) -> None:
    del world
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10}})["volume"]["id"]
    call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}})
    call("GET", "/v3/os-hosts")
    call("GET", "/v3/os-hosts/testhost@ceph")
    call("PUT", "/v3/os-hosts/testhost@ceph", {"status": "disable"})
    call("GET", "/v3/clusters")
    call("GET", "/v3/clusters/detail?is_up=true")
    call("GET", "/v3/clusters/main", refused=404)
    call("PUT", "/v3/clusters/enable", {"name": "main"}, refused=404)
    call("PUT", "/v3/clusters/disable", {"name": "main", "disabled_reason": "new disks"}, refused=404)
    call("POST", "/v3/workers/cleanup", {"host": "testhost@ceph", "is_up": True})
