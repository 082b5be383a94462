# SPDX-License-Identifier: Apache-2.0
"""Volume types."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = ["volume/types.index", "volume/types.show_default", "volume/types.show"]


def play(call: Call, world: World) -> None:
    del world
    kind = call("GET", "/v3/types")["volume_types"][0]["id"]
    call("GET", "/v3/types/default")
    call("GET", f"/v3/types/{kind}")
