# SPDX-License-Identifier: Apache-2.0
"""The attach actions that are older than /attachments."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/attach_actions.{name}"
    for name in (
        "reserve", "unreserve", "begin_detaching", "roll_detaching", "attach", "detach", "initialize_connection",
        "terminate_connection", "force_detach", "update_readonly_flag",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    del world
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    connector = {"host": "store1", "ip": "192.0.2.8", "initiator": "iqn.1993-08.org.debian:01:1"}

    def act(name: str, **body: object) -> None:
        call("POST", f"/v3/volumes/{volume}/action", {name: body})

    act("os-update_readonly_flag", readonly=False)
    act("os-reserve")
    act("os-unreserve")
    act("os-initialize_connection", connector=connector)
    act("os-attach", host_name="store1", mountpoint="/dev/rbd0", mode="rw")
    act("os-begin_detaching")
    act("os-roll_detaching")
    act("os-terminate_connection", connector=connector)
    attachment = call("GET", f"/v3/volumes/{volume}")["volume"]["attachments"][0]["attachment_id"]
    act("os-detach", attachment_id=attachment)
    act("os-attach", host_name="store1", mountpoint="/dev/rbd0", mode="ro")
    act("os-force_detach", connector=connector)
