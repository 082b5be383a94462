# SPDX-License-Identifier: Apache-2.0
"""Actions on volumes beside attaching."""

from __future__ import annotations

from cinderlite.context import World
from cinderlite.db import models
from scenarios import Call

OPERATIONS = [
    f"volume/volume_actions.{name}"
    for name in (
        "extend",
        "extend_completion",
        "reset_status",
        "force_delete",
        "revert",
        "retype",
        "migrate",
        "migrate_completion",
    )
]


def play(call: Call, world: World) -> None:
    with world.db.write() as session:
        session.add(models.VolumeType(name="gold"))
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    actions = f"/v3/volumes/{volume}/action"
    call("POST", actions, {"os-extend": {"new_size": 20}})
    call("POST", actions, {"os-extend_volume_completion": {"error": False}}, refused=400)
    call("POST", actions, {"os-retype": {"new_type": "gold"}})
    call("POST", actions, {"os-migrate_volume": {"host": "testhost@ceph#ceph"}}, refused=400)
    call("POST", actions, {"os-migrate_volume_completion": {"new_volume": volume}}, refused=400)
    snapshot = call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}})["snapshot"]["id"]
    call("POST", actions, {"revert": {"snapshot_id": snapshot}})
    call("DELETE", f"/v3/snapshots/{snapshot}")
    call("POST", actions, {"os-reset_status": {"status": "error"}})
    call("POST", actions, {"os-force_delete": {}})
