# SPDX-License-Identifier: Apache-2.0
"""Group types and their specs."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/group_types.{name}"
    for name in (
        "index", "show_default", "show", "create", "update", "delete", "list_specs", "create_specs", "show_spec",
        "replace_spec", "delete_spec",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    del world
    specs = {"consistent_group_snapshot_enabled": "<is> True"}
    made = call(
        "POST", "/v3/group_types", {"group_type": {"name": "together", "is_public": True, "group_specs": specs}}
    )
    one = f"/v3/group_types/{made['group_type']['id']}"
    for path in ("/v3/group_types", one, f"{one}/group_specs"):
        call("GET", path)
    call("GET", "/v3/group_types/default", refused=404)
    call("PUT", one, {"group_type": {"description": "Databases and their logs"}})
    call("POST", f"{one}/group_specs", {"group_specs": {"tier": "gold"}})
    call("PUT", f"{one}/group_specs/tier", {"tier": "silver"})
    call("GET", f"{one}/group_specs/tier")
    call("DELETE", f"{one}/group_specs/tier")
    call("DELETE", one)
