# SPDX-License-Identifier: Apache-2.0
"""Where volumes go on a real Ceph with two pools: its own figures decide, and what administrators say."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.process import wait

pytestmark = pytest.mark.real

FAST = "fast"


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, guests: Any, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service with a second pool, which promises no more than it has."""
    ceph.add_pool(FAST)
    second = {"rbd_ceph_conf": ceph.conf, "rbd_pool": FAST, "rbd_user": ceph.user, "max_over_subscription_ratio": 1}
    options = {"DEFAULT": {"enabled_backends": f"ceph,{FAST}", "quota_gigabytes": -1}, FAST: second}
    running = Service(tmp_path, ceph.conf, sockets, options)
    running.start()
    yield running
    running.stop()
    ceph.empty()


def pools(service: Service) -> dict[str, dict[str, Any]]:
    """The figures of each pool, by the back end's name."""
    found = service.call("GET", "/v3/scheduler-stats/get_pools?detail=true", user="root").body["pools"]
    return {one["capabilities"]["volume_backend_name"]: one["capabilities"] for one in found}


def hosts(service: Service) -> list[str]:
    """The second pool's part of every host, as the list of services names it."""
    found = service.call("GET", "/v3/os-services?binary=cinder-volume", user="root").body["services"]
    return [str(one["host"]) for one in found if str(one["host"]).endswith(f"@{FAST}")]


def test_ceph_decides_how_much_fits(service: Service, ceph: Ceph) -> None:
    made = service.call("POST", "/v3/types", {"volume_type": {"name": "quick"}}, user="root").body["volume_type"]
    path = f"/v3/types/{made['id']}/extra_specs"
    assert service.call("POST", path, {"extra_specs": {"volume_backend_name": FAST}}, user="root").status == 200
    # The manager has no statistics of a pool in its first seconds.
    told: dict[str, dict[str, Any]] = {}

    def has_figures() -> bool:
        told.update(pools(service))
        return "unknown" not in told[FAST].values()

    wait(has_figures, timeout=20, what="the pool's figures")
    assert set(told) == {"ceph", FAST}
    whole = told[FAST]["total_capacity_gb"]
    assert 0 < told[FAST]["free_capacity_gb"] <= whole
    # More than there can be when what tests before this one removed is gone.
    beyond = 3 * math.ceil(whole)
    too_big = service.create(beyond, volume_type="quick")
    service.rest(too_big, "error")
    [message] = service.messages(too_big)
    assert "not enough room" in message
    assert ceph.rbd("ls", FAST).split() == []
    # The other pool promises twenty times as much.
    plain = service.create(beyond)
    service.rest(plain, "available")
    small = service.create(1, volume_type="quick")
    service.rest(small, "available")
    assert ceph.rbd("ls", FAST).split() == [f"volume-{small}"]
    assert pools(service)[FAST]["allocated_capacity_gb"] == 1
    for volume in (too_big, plain, small):
        assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202


def test_a_frozen_pool_keeps_what_it_has(service: Service) -> None:
    wait(lambda: hosts(service) != [], timeout=20, what="the service to report its back ends")
    [name] = hosts(service)
    host = {"host": name}
    assert service.call("PUT", "/v3/os-services/freeze", host, user="root").status == 200
    volume = service.create(1)
    service.rest(volume, "available")
    assert set(pools(service)) == {"ceph"}
    assert service.call("PUT", "/v3/os-services/thaw", host, user="root").status == 200
    assert set(pools(service)) == {"ceph", FAST}
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
