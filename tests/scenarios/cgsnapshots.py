# SPDX-License-Identifier: Apache-2.0
"""Snapshots of consistency groups."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [f"volume/cgsnapshots.{name}" for name in ("index", "detail", "show", "create", "delete")]


def play(call: Call, world: World) -> None:
    del world
    fields = {"name": "database", "volume_types": "__DEFAULT__"}
    group = call("POST", "/v3/consistencygroups", {"consistencygroup": fields})["consistencygroup"]["id"]
    for name in ("data", "log"):
        volume = {"size": 10, "name": name, "volume_type": "__DEFAULT__", "consistencygroup_id": group}
        call("POST", "/v3/volumes", {"volume": volume})
    made = call("POST", "/v3/cgsnapshots", {"cgsnapshot": {"consistencygroup_id": group, "name": "monday"}})
    one = f"/v3/cgsnapshots/{made['cgsnapshot']['id']}"
    for path in ("/v3/cgsnapshots?limit=10", "/v3/cgsnapshots/detail", one):
        call("GET", path)
    call("DELETE", one)
