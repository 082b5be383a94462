# SPDX-License-Identifier: Apache-2.0
"""What the service says of itself."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    "volume/services.index",
    "volume/services.pools",
    "volume/services.zones",
    "volume/services.extensions",
    "volume/services.extension",
]


def play(call: Call, world: World) -> None:
    del world
    for path in (
        "/os-services",
        "/os-availability-zone",
        "/scheduler-stats/get_pools?detail=True",
        "/extensions",
        "/extensions/os-availability-zone",
    ):
        call("GET", f"/v3{path}")
