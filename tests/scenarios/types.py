# SPDX-License-Identifier: Apache-2.0
"""Volume types, their extra specs, and who may use them."""

from __future__ import annotations

from cinderlite.context import World
from conftest import OTHER
from scenarios import Call

OPERATIONS = [
    "volume/types.index",
    "volume/types.create",
    "volume/types.show_default",
    "volume/types.show",
    "volume/types.update",
    "volume/types.delete",
    "volume/types.show_extra_specs",
    "volume/types.add_extra_specs",
    "volume/types.show_extra_spec",
    "volume/types.replace_extra_spec",
    "volume/types.delete_extra_spec",
    "volume/types.show_access",
    "volume/types.add_access",
    "volume/types.remove_access",
]


def play(call: Call, world: World) -> None:
    del world
    private = {"name": "gold", "description": "fast", "os-volume-type-access:is_public": False}
    made = call("POST", "/v3/types", {"volume_type": {**private, "extra_specs": {"volume_backend_name": "ceph"}}})
    one = f"/v3/types/{made['volume_type']['id']}"
    call("GET", "/v3/types?is_public=none&sort=name:asc")
    call("GET", "/v3/types/default")
    call("PUT", one, {"volume_type": {"name": "golden"}})
    specs = one + "/extra_specs"
    call("POST", specs, {"extra_specs": {"multiattach": "<is> True", "compression": "<is> False"}})
    call("GET", specs)
    call("GET", specs + "/multiattach")
    call("PUT", specs + "/multiattach", {"multiattach": "<is> False"})
    call("DELETE", specs + "/compression")
    call("GET", one)
    call("POST", one + "/action", {"addProjectAccess": {"project": OTHER}})
    call("GET", one + "/os-volume-type-access")
    call("POST", one + "/action", {"removeProjectAccess": {"project": OTHER}})
    call("DELETE", one)
