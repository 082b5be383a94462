# SPDX-License-Identifier: Apache-2.0
"""Quotas and limits."""

from __future__ import annotations

from cinderlite.context import World
from conftest import PROJECT
from scenarios import Call

OPERATIONS = [
    "volume/quotas.limits",
    "volume/quotas.show",
    "volume/quotas.defaults",
    "volume/quotas.update",
    "volume/quotas.delete",
    "volume/quotas.show_class",
    "volume/quotas.update_class",
]


def play(call: Call, world: World) -> None:
    del world
    for path in ("/limits", f"/os-quota-sets/{PROJECT}?usage=True", f"/os-quota-sets/{PROJECT}/defaults"):
        call("GET", f"/v3{path}")
    call("PUT", f"/v3/os-quota-sets/{PROJECT}", {"quota_set": {"volumes": 20}})
    call("DELETE", f"/v3/os-quota-sets/{PROJECT}")
    call("PUT", "/v3/os-quota-class-sets/default", {"quota_class_set": {"volumes": 15}})
    call("GET", "/v3/os-quota-class-sets/default")
