# SPDX-License-Identifier: Apache-2.0
"""What a volume is being made from stays what and where it is, also while nobody is at work on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.context import World
from conftest import Client, cluster_of, settle
from fakes_cluster import FakeCluster

TWO = {"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}

pytestmark = pytest.mark.parametrize("conf", [TWO], indirect=True)


def broken_off(admin: Client, cluster: FakeCluster, moments: int, **source: str) -> str:
    """The id of a volume whose making did not get behind so many changes in Ceph."""
    left: Iterator[None] = iter([None] * moments)

    def lost() -> None:
        if next(left, "none left") is not None:
            raise errors.CephTimeout("no answer")

    cluster.life = lost
    made = admin.post("/v3/volumes", {"volume": source})
    cluster.life = lambda: None
    assert made.status_code == 202, made.text
    found: dict[str, Any] = admin.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]
    assert found["status"] == "creating"
    return str(found["id"])


@pytest.fixture
def source(admin: Client, world: World) -> dict[str, str]:
    """A volume in a pool that has another beside it, and a snapshot of it."""
    cluster_of(world, "fast").free_bytes = 0
    volume = admin.volume()["id"]
    cluster_of(world, "fast").free_bytes = 2**40
    made = admin.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    return {"source_volid": volume, "snapshot_id": made.json["snapshot"]["id"]}


@pytest.mark.parametrize("kind", ["source_volid", "snapshot_id"])
@pytest.mark.parametrize("moments", [0, 1])
def test_the_source_is_not_deleted_moved_or_offered_meanwhile(
    admin: Client, world: World, cluster: FakeCluster, source: dict[str, str], kind: str, moments: int
) -> None:
    made = broken_off(admin, cluster, moments, **{kind: source[kind]})
    volume = f"/v3/volumes/{source['source_volid']}"
    assert admin.delete(f"{volume}?cascade=True").status_code == 400
    for action, fields in (("os-migrate_volume", {"host": "testhost@fast#fast"}), ("os-unmanage", {})):
        assert admin.post(f"{volume}/action", {action: fields}).status_code == 400
    offer = {"transfer": {"volume_id": source["source_volid"]}}
    assert admin.post("/v3/volume-transfers", offer).status_code == 400
    taken = admin.delete(f"/v3/snapshots/{source['snapshot_id']}")
    assert taken.status_code == (400 if kind == "snapshot_id" else 202)
    settle(world)
    assert admin.get(f"/v3/volumes/{made}").json["volume"]["status"] == "available"
    assert admin.delete(f"{volume}?cascade=True").status_code == 202
    assert admin.delete(f"/v3/volumes/{made}").status_code == 202
    settle(world, passes=6)
    assert (cluster.images(""), cluster.trashed()) == (set(), [])
