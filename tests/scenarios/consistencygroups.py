# SPDX-License-Identifier: Apache-2.0
"""Consistency groups."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/consistencygroups.{name}"
    for name in (
        "index", "detail", "show", "create", "create_from_source", "update", "update_without_word", "delete",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    del world
    fields = {"name": "database", "volume_types": "__DEFAULT__"}
    group = call("POST", "/v3/consistencygroups", {"consistencygroup": fields})["consistencygroup"]["id"]
    one = f"/v3/consistencygroups/{group}"
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    call("PUT", f"{one}/update", {"consistencygroup": {"description": "data and log", "add_volumes": volume}})
    call("PUT", one, {"consistencygroup": {"name": "of the shop"}})
    for path in ("/v3/consistencygroups", "/v3/consistencygroups/detail", one):
        call("GET", path)
    source = {"source_cgid": group, "name": "a copy of it"}
    call("POST", "/v3/consistencygroups/create_from_src", {"consistencygroup-from-src": source})
    call("POST", f"{one}/delete", {"consistencygroup": {"force": True}})
