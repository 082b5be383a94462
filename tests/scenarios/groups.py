# SPDX-License-Identifier: Apache-2.0
"""Groups and the actions on them."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/groups.{name}"
    for name in (
        "index", "detail", "show", "create", "update", "delete", "reset_status", "enable_replication",
        "disable_replication", "failover_replication", "list_replication_targets", "create_from_source",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    del world
    replicated = {"group_replication_enabled": "<is> True"}
    kind = call("POST", "/v3/group_types", {"group_type": {"name": "pair", "group_specs": replicated}})["group_type"]
    specs = {"replication_enabled": "<is> True"}
    call("POST", "/v3/types", {"volume_type": {"name": "remote", "extra_specs": specs}})
    copied = {"group_type": "pair", "volume_types": ["remote"]}
    action = f"/v3/groups/{call('POST', '/v3/groups', {'group': copied})['group']['id']}/action"
    for verb in ("enable_replication", "disable_replication", "failover_replication"):
        call("POST", action, {verb: {}}, refused=400)
    call("POST", action, {"list_replication_targets": {}})
    made = call(
        "POST",
        "/v3/groups",
        {"group": {"name": "database", "group_type": kind["id"], "volume_types": ["__DEFAULT__"]}},
    )
    one = f"/v3/groups/{made['group']['id']}"
    fields = {"size": 10, "volume_type": "__DEFAULT__", "name": "data"}
    volume = call("POST", "/v3/volumes", {"volume": fields})["volume"]["id"]
    call("PUT", one, {"group": {"description": "data and log", "add_volumes": volume}})
    for path in ("/v3/groups?name=database", "/v3/groups/detail?list_volume=true", f"{one}?list_volume=true"):
        call("GET", path)
    source = {"source_group_id": made["group"]["id"], "name": "a copy of it"}
    call("POST", "/v3/groups/action", {"create-from-src": source})
    action = f"{one}/action"
    call("POST", action, {"reset_status": {"status": "available"}})
    call("POST", action, {"delete": {"delete-volumes": True}})
