# SPDX-License-Identifier: Apache-2.0
"""Default volume types of projects."""

from __future__ import annotations

from cinderlite.context import World
from conftest import OTHER
from scenarios import Call

OPERATIONS = [
    "volume/default_types.index",
    "volume/default_types.show",
    "volume/default_types.update",
    "volume/default_types.delete",
]


def play(call: Call, world: World) -> None:
    del world
    call("POST", "/v3/types", {"volume_type": {"name": "silver"}})
    call("PUT", f"/v3/default-types/{OTHER}", {"default_type": {"volume_type": "silver"}})
    call("GET", f"/v3/default-types/{OTHER}")
    call("GET", "/v3/default-types")
    call("DELETE", f"/v3/default-types/{OTHER}")
