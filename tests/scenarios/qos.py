# SPDX-License-Identifier: Apache-2.0
"""QoS specs and which types have them."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    "volume/qos.index",
    "volume/qos.create",
    "volume/qos.show",
    "volume/qos.update",
    "volume/qos.delete",
    "volume/qos.delete_keys",
    "volume/qos.show_associations",
    "volume/qos.associate",
    "volume/qos.disassociate",
    "volume/qos.disassociate_all",
]


def play(call: Call, world: World) -> None:
    del world
    kind = call("POST", "/v3/types", {"volume_type": {"name": "bronze"}})["volume_type"]["id"]
    limits = {"total_iops_sec": "2000", "total_bytes_sec": "104857600"}
    made = call("POST", "/v3/qos-specs", {"qos_specs": {"name": "fast", "consumer": "front-end", **limits}})
    one = f"/v3/qos-specs/{made['qos_specs']['id']}"
    call("PUT", one, {"qos_specs": {"total_iops_sec": "3000"}})
    call("PUT", one + "/delete_keys", {"keys": ["total_bytes_sec"]})
    call("GET", one)
    call("GET", "/v3/qos-specs")
    call("GET", f"{one}/associate?vol_type_id={kind}")
    call("GET", one + "/associations")
    call("GET", f"{one}/disassociate?vol_type_id={kind}")
    call("GET", one + "/disassociate_all")
    call("DELETE", one)
