# SPDX-License-Identifier: Apache-2.0
"""Images and snapshots that are in the pool already."""

from __future__ import annotations

from cinderlite.context import World
from conftest import cluster_of
from scenarios import Call

OPERATIONS = [
    f"volume/manageable.{name}"
    for name in (
        "manage_volume", "manage_volume_as_of_old", "manage_snapshot", "manage_snapshot_as_of_old", "list_volumes",
        "list_volumes_detail", "list_volumes_as_of_old", "list_volumes_detail_as_of_old", "list_snapshots",
        "list_snapshots_detail", "list_snapshots_as_of_old", "list_snapshots_detail_as_of_old", "unmanage_volume",
        "unmanage_snapshot",
    )
]  # fmt: skip
HOST = "testhost@ceph"


def play(call: Call, world: World) -> None:
    cluster = cluster_of(world)
    for name in ("database", "archive"):
        cluster.create(name, 10 * 2**30)
    paths = ("/manageable_volumes", "/manageable_snapshots"), ("/os-volume-manage", "/os-snapshot-manage")
    for (path, of_snapshots), name in zip(paths, ("database", "archive"), strict=True):
        call("GET", f"/v3{path}?host={HOST}%23ceph")
        call("GET", f"/v3{path}/detail?host={HOST}")
        body = {"volume": {"host": HOST, "ref": {"source-name": name}, "name": name}}
        volume = call("POST", f"/v3{path}", body)["volume"]["id"]
        cluster.snapshot(f"volume-{volume}", "monday")
        call("GET", f"/v3{of_snapshots}?host={HOST}")
        call("GET", f"/v3{of_snapshots}/detail?host={HOST}")
        body = {"snapshot": {"volume_id": volume, "ref": {"source-name": "monday"}}}
        snapshot = call("POST", f"/v3{of_snapshots}", body)["snapshot"]["id"]
        call("POST", f"/v3/snapshots/{snapshot}/action", {"os-unmanage": {}})
        call("POST", f"/v3/volumes/{volume}/action", {"os-unmanage": {}})
