# SPDX-License-Identifier: Apache-2.0
"""What the service says of itself, as Cinder's services."""

from __future__ import annotations

import pytest

from cinderlite.context import World
from cinderlite.core import services
from conftest import Client


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["cinder-backup testhost", "cinder-scheduler testhost", "cinder-volume testhost@ceph"]),
        (
            "?host=testhost",
            ["cinder-backup testhost", "cinder-scheduler testhost", "cinder-volume testhost@ceph"],
        ),
        ("?host=testhost@ceph", ["cinder-volume testhost@ceph"]),
        ("?host=testhost&binary=cinder-volume", ["cinder-volume testhost@ceph"]),
        ("?host=test", []),
    ],
)
def test_services_are_found_by_host_and_binary(admin: Client, world: World, query: str, found: list[str]) -> None:
    services.beat(world)
    shown = admin.get(f"/v3/os-services{query}").json["services"]
    assert [f"{one['binary']} {one['host']}" for one in shown] == found
