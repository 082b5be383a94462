# SPDX-License-Identifier: Apache-2.0
"""Pools and what they can do, and the filters of lists."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = ["volume/pools.get_pools", "volume/pools.show", "volume/resource_filters.index"]


def play(call: Call, world: World) -> None:
    del world
    call("GET", "/v3/scheduler-stats/get_pools?detail=True")
    call("GET", "/v3/capabilities/testhost@ceph")
    call("GET", "/v3/resource_filters?resource=volume")
