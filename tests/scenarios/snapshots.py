# SPDX-License-Identifier: Apache-2.0
"""Snapshots, their metadata and the actions on them."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/snapshots.{name}"
    for name in (
        "index", "detail", "create", "show", "update", "delete", "show_metadata", "add_metadata", "replace_metadata",
        "show_key", "replace_key", "delete_key", "reset_status", "force_delete", "report",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    del world
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    made = call(
        "POST",
        "/v3/snapshots",
        {"snapshot": {"volume_id": volume, "name": "monday", "metadata": {"purpose": "upgrade"}}},
    )
    one = f"/v3/snapshots/{made['snapshot']['id']}"
    for path in (f"/v3/snapshots?volume_id={volume}", "/v3/snapshots/detail?sort=name:asc", one, f"{one}/metadata"):
        call("GET", path)
    call("PUT", one, {"snapshot": {"name": "before the upgrade"}})
    call("POST", f"{one}/metadata", {"metadata": {"tier": "gold"}})
    call("PUT", f"{one}/metadata", {"metadata": {"purpose": "archive"}})
    call("GET", f"{one}/metadata/purpose")
    call("PUT", f"{one}/metadata/purpose", {"meta": {"purpose": "audit"}})
    call("DELETE", f"{one}/metadata/purpose")
    call("POST", f"{one}/action", {"os-reset_status": {"status": "creating"}})
    call("POST", f"{one}/action", {"os-update_snapshot_status": {"status": "available", "progress": "100%"}})
    call("DELETE", one)
    other = call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}})["snapshot"]["id"]
    call("POST", f"/v3/snapshots/{other}/action", {"os-force_delete": {}})
