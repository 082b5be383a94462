# SPDX-License-Identifier: Apache-2.0
"""User messages."""

from __future__ import annotations

from cinderlite.context import World
from cinderlite.core import messages
from cinderlite.db import models
from scenarios import Call

OPERATIONS = ["volume/messages.index", "volume/messages.show", "volume/messages.delete"]


def play(call: Call, world: World) -> None:
    made = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})
    with world.db.write() as session:
        row = session.get_one(models.Volume, made["volume"]["id"])
        messages.leave(session, row, "delete", "Another client has the image open.", request_id="req-1")
    message = call("GET", "/v3/messages")["messages"][0]["id"]
    call("GET", f"/v3/messages/{message}")
    call("DELETE", f"/v3/messages/{message}")
