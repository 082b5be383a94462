# SPDX-License-Identifier: Apache-2.0
"""Volumes and their metadata."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    "volume/volumes.create",
    "volume/volumes.index",
    "volume/volumes.detail",
    "volume/volumes.summary",
    "volume/volumes.show",
    "volume/volumes.update",
    "volume/volumes.delete",
    "volume/volumes.show_metadata",
    "volume/volumes.add_metadata",
    "volume/volumes.replace_metadata",
    "volume/volumes.show_key",
    "volume/volumes.replace_key",
    "volume/volumes.delete_key",
]


def play(call: Call, world: World) -> None:
    del world
    made = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data", "metadata": {"purpose": "database"}}})
    one = f"/v3/volumes/{made['volume']['id']}"
    for path in ("/v3/volumes?limit=10", "/v3/volumes/detail?sort=name:asc", "/v3/volumes/summary", one):
        call("GET", path)
    call("PUT", one, {"volume": {"name": "database", "description": "of the shop"}})
    call("GET", one + "/metadata")
    call("POST", one + "/metadata", {"metadata": {"tier": "gold"}})
    call("PUT", one + "/metadata", {"metadata": {"purpose": "cache"}})
    call("GET", one + "/metadata/purpose")
    call("PUT", one + "/metadata/purpose", {"meta": {"purpose": "archive"}})
    call("DELETE", one + "/metadata/purpose")
    call("DELETE", one)
