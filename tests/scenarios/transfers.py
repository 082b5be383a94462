# SPDX-License-Identifier: Apache-2.0
"""Transfers of volumes between projects, by the newer path and the older one."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

_NEWER = ("index", "detail", "create", "show", "delete", "accept")
OPERATIONS = [f"volume/transfers.{name}{tail}" for tail in ("", "_as_of_old") for name in _NEWER]


def play(call: Call, world: World) -> None:
    del world
    volume = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data"}})["volume"]["id"]
    _hand_over(call, "/v3/volume-transfers", {"volume_id": volume, "name": "for the shop", "no_snapshots": True})
    _hand_over(call, "/v3/os-volume-transfer", {"volume_id": volume, "name": "for the shop"})


def _hand_over(call: Call, path: str, offer: dict[str, object]) -> None:
    """Offer a volume, look at that, take it back, offer it again, accept."""
    first = call("POST", path, {"transfer": offer})["transfer"]
    for what in ("", "/detail", f"/{first['id']}"):
        call("GET", path + what)
    call("DELETE", f"{path}/{first['id']}")
    second = call("POST", path, {"transfer": offer})["transfer"]
    call("POST", f"{path}/{second['id']}/accept", {"accept": {"auth_key": second["auth_key"]}})
