# SPDX-License-Identifier: Apache-2.0
"""Snapshots of groups."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/group_snapshots.{name}" for name in ("index", "detail", "show", "create", "delete", "reset_status")
]


def play(call: Call, world: World) -> None:
    del world
    specs = {"consistent_group_snapshot_enabled": "<is> True"}
    call("POST", "/v3/group_types", {"group_type": {"name": "together", "group_specs": specs}})
    fields = {"name": "database", "group_type": "together", "volume_types": ["__DEFAULT__"]}
    group = call("POST", "/v3/groups", {"group": fields})["group"]["id"]
    for name in ("data", "log"):
        volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": name}})["volume"]["id"]
        call("PUT", f"/v3/groups/{group}", {"group": {"add_volumes": volume}})
    made = call("POST", "/v3/group_snapshots", {"group_snapshot": {"group_id": group, "name": "monday"}})
    one = f"/v3/group_snapshots/{made['group_snapshot']['id']}"
    for path in (f"/v3/group_snapshots?group_id={group}", "/v3/group_snapshots/detail?sort=name:asc", one):
        call("GET", path)
    call("POST", f"{one}/action", {"reset_status": {"status": "available"}})
    call("DELETE", one)
