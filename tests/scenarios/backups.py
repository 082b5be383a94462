# SPDX-License-Identifier: Apache-2.0
"""Backups, their records and the actions on them."""

from __future__ import annotations

from cinderlite.context import World
from conftest import settle
from scenarios import Call

OPERATIONS = [
    f"volume/backups.{name}"
    for name in (
        "index", "detail", "create", "show", "update", "delete", "restore", "export_record", "import_record",
        "reset_status", "force_delete",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    made = call(
        "POST",
        "/v3/backups",
        {"backup": {"volume_id": volume, "name": "monday", "metadata": {"purpose": "upgrade"}}},
    )
    one = f"/v3/backups/{made['backup']['id']}"
    for path in (f"/v3/backups?volume_id={volume}", "/v3/backups/detail?sort=name:asc", one):
        call("GET", path)
    call("PUT", one, {"backup": {"name": "before the upgrade"}})
    call("POST", f"{one}/restore", {"restore": {"name": "again"}})
    record = call("GET", f"{one}/export_record")["backup-record"]
    call("POST", f"{one}/action", {"os-reset_status": {"status": "error"}})
    call("DELETE", one)
    settle(world)
    call("POST", "/v3/backups/import_record", {"backup-record": record})
    call("POST", f"{one}/action", {"os-force_delete": {}})
