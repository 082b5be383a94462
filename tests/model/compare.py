# SPDX-License-Identifier: Apache-2.0
"""Whether the service's answers, its database and Ceph show what is expected, all of it and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cinderlite.core import reconcile, vault
from cinderlite.db import models
from conftest import Client
from model.expected import LIMITS, PLAIN, Data, Expected, Snapshot, Volume
from model.stage import Stage

GIB = 2**30


def everything(stage: Stage, expected: Expected, turn: int) -> None:
    """Compare all that there is; what members are shown only for one of them, which `turn` chooses with the filters."""
    everybodys(stage, expected)
    at_rest(stage, expected)
    images(stage, expected)
    backups(stage, expected)
    project, client = list(stage.clients.items())[turn % len(stage.clients)]
    volumes_of(client, project, expected, turn)
    snapshots_of(client, project, expected, turn)
    others_of(client, project, expected)
    quota(stage.admin, project, expected)
    absent(stage, expected, turn)


def _mine(things: Mapping[str, Any], project: str) -> list[Any]:
    return [one for one in things.values() if one.project == project]


def _asked(client: Client, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.text)
    return answer.json


# -- what the API says


def _volume(volume: Volume) -> dict[str, Any]:
    return {
        "id": volume.id, "name": volume.name, "status": volume.status, "size": volume.size, "volume_type": volume.kind,
        "metadata": volume.metadata, "snapshot_id": volume.snapshot_id, "source_volid": volume.source_volid,
        "group_id": volume.group, "attachments": [], "bootable": "false", "encrypted": False, "multiattach": False,
    }  # fmt: skip


def _snapshot(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id, "name": snapshot.name, "status": "available", "size": snapshot.size,
        "volume_id": snapshot.volume, "metadata": {}, "os-extended-snapshot-attributes:progress": "100%",
    }  # fmt: skip


def _same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """The same objects in the same order, as far as the fields go that are wanted."""
    assert [{key: one[key] for key in like} for one, like in zip(found, wanted, strict=False)] == wanted
    assert len(found) == len(wanted)


_VOLUME_FILTERS: list[tuple[str, Callable[[Volume], bool]]] = [
    ("status=available", lambda one: one.status == "available"),
    ("status=awaiting-transfer", lambda one: one.status == "awaiting-transfer"),
    ("name=one", lambda one: one.name == "one"),
    ("metadata={'k': 'one'}", lambda one: one.metadata.get("k") == "one"),
    ("size=2", lambda one: one.size == 2),
    ("name~=o", lambda one: "o" in (one.name or "")),
]


def volumes_of(client: Client, project: str, expected: Expected, turn: int) -> None:
    """The lists that a project sees, in full, with a filter and in pages, and the sum."""
    mine = _mine(expected.volumes, project)
    listed = _asked(client, "/v3/volumes/detail?sort=created_at:asc&with_count=True")
    _same(listed["volumes"], [_volume(one) for one in mine])
    assert listed["count"] == len(mine)
    query, chosen = _VOLUME_FILTERS[turn % len(_VOLUME_FILTERS)]
    found = _asked(client, f"/v3/volumes?sort=created_at:asc&{query}")["volumes"]
    assert [one["id"] for one in found] == [one.id for one in mine if chosen(one)], query
    seen: list[str] = []
    page = {"volumes_links": [{"href": f"/v3/volumes?sort=created_at:asc&limit={turn % 3 + 1}"}]}
    while "volumes_links" in page:
        path = page["volumes_links"][0]["href"]
        page = _asked(client, path[path.index("/v3") :])
        seen += [one["id"] for one in page["volumes"]]
    assert seen == [one.id for one in mine]
    total = _asked(client, "/v3/volumes/summary")["volume-summary"]
    assert (total["total_count"], total["total_size"]) == (len(mine), sum(one.size for one in mine))


def snapshots_of(client: Client, project: str, expected: Expected, turn: int) -> None:
    """The same of snapshots."""
    mine = _mine(expected.snapshots, project)
    listed = _asked(client, "/v3/snapshots/detail?sort=created_at:asc&with_count=True")
    _same(listed["snapshots"], [_snapshot(one) for one in mine])
    assert listed["count"] == len(mine)
    if mine:
        of = mine[turn % len(mine)].volume
        found = _asked(client, f"/v3/snapshots?sort=created_at:asc&volume_id={of}")["snapshots"]
        assert [one["id"] for one in found] == [one.id for one in mine if one.volume == of]


def others_of(client: Client, project: str, expected: Expected) -> None:
    """A project's backups, transfers and groups."""
    backups = _asked(client, "/v3/backups/detail?sort=created_at:asc")["backups"]
    wanted = [
        {"id": one.id, "volume_id": one.volume, "snapshot_id": one.snapshot, "size": one.size, "status": "available",
         "is_incremental": one.incremental}
        for one in _mine(expected.backups, project)
    ]  # fmt: skip
    _same(backups, wanted)
    transfers = _asked(client, "/v3/volume-transfers?sort=created_at:asc")["transfers"]
    _same(transfers, [{"id": one.id, "volume_id": one.volume} for one in _mine(expected.transfers, project)])
    groups = _asked(client, "/v3/groups/detail?list_volume=True&sort=created_at:asc")["groups"]
    for one in groups:
        one["volumes"] = sorted(one["volumes"])
    _same(
        groups,
        [
            {"id": one.id, "status": "available", "volumes": sorted(two.id for two in expected.members(one.id))}
            for one in _mine(expected.groups, project)
        ],
    )


def quota(admin: Client, project: str, expected: Expected) -> None:
    """What is used, and that it never is more than allowed."""
    answer = _asked(admin, f"/v3/os-quota-sets/{project}?usage=True")["quota_set"]
    used = {name: answer[name]["in_use"] for name in LIMITS}
    assert used == expected.usage(project)
    # A retype takes along what other projects kept of the volume's snapshots, whatever they may have of that type.
    assert {name: used[name] for name in LIMITS if "quick" not in name and used[name] > LIMITS[name]} == {}


def everybodys(stage: Stage, expected: Expected) -> None:
    """What only administrators see: of all projects, and where."""
    listed = _asked(stage.admin, "/v3/volumes/detail?all_tenants=1&sort=created_at:asc")["volumes"]
    wanted = [
        {"id": one.id, "os-vol-tenant-attr:tenant_id": one.project, "migration_status": one.migration,
         "os-vol-host-attr:host": f"testhost@{one.backend}#{one.backend}"}
        for one in expected.volumes.values()
    ]  # fmt: skip
    _same(listed, wanted)
    found = _asked(stage.admin, "/v3/snapshots/detail?all_tenants=1&sort=created_at:asc")["snapshots"]
    owner = "os-extended-snapshot-attributes:project_id"
    _same(found, [{"id": one.id, owner: one.project} for one in expected.snapshots.values()])


def absent(stage: Stage, expected: Expected, turn: int) -> None:
    """What is gone, and what is another project's, is not found."""
    first, second = stage.clients
    foreign = [
        (second if one.project == first else first, f"{noun}/{one.id}")
        for noun, things in (("volumes", expected.volumes), ("snapshots", expected.snapshots),
                             ("backups", expected.backups), ("groups", expected.groups))
        for one in things.values()
    ]  # fmt: skip
    gone = [(first, path) for path in expected.gone]
    for paths in (foreign, gone):
        if paths:
            project, path = paths[turn % len(paths)]
            assert stage.clients[project].get(f"/v3/{path}").status_code == 404, path


def answers(stage: Stage) -> list[Any]:
    """All that everybody is told of what lasts; what awaits a transfer is as available as it will be."""
    found = []
    for client in (*stage.clients.values(), stage.admin):
        for noun in ("volumes", "snapshots", "backups", "groups", "group_snapshots"):
            listed = _asked(client, f"/v3/{noun}/detail?sort=created_at:asc")[noun]
            found += [{**one, "status": one["status"].replace("awaiting-transfer", "available")} for one in listed]
    for project in stage.clients:
        found.append(_asked(stage.admin, f"/v3/os-quota-sets/{project}?usage=True"))
    for path in ("types?is_public=None", "group_types"):
        found.append(_asked(stage.admin, f"/v3/{path}"))
    return found


# -- what the database says


def at_rest(stage: Stage, expected: Expected) -> None:
    """Nothing is under way but the end of images in the trash that clones need, and no row is left without its thing.

    An image that is itself in the trash may need the chain of the backups that it was restored from.
    """
    sharing = any(one.deleted and one.busy and one.restored_from for one in stage.rows(models.Volume))
    kept = {volume_id for ids in expected.trash().values() for volume_id in ids}
    for machine in reconcile.MACHINES:
        for row in stage.rows(machine.model):
            waits = row.id in kept if isinstance(row, models.Volume) else row.status == "deleted" and sharing
            assert (bool(row.busy), row.intent is not None) == (waits, waits), (row.id, row.status, row.intent)
            assert row.lease_owner is None, (row.id, row.lease_owner)
    assert {one.id for one in stage.rows(models.Volume) if not one.deleted} == set(expected.volumes)
    assert {one.id for one in stage.rows(models.Snapshot)} == set(expected.snapshots)
    assert {one.id for one in stage.rows(models.Backup) if one.status != "deleted"} == set(expected.backups)
    assert {one.id for one in stage.rows(models.Transfer) if not one.deleted} == set(expected.transfers)
    assert {one.id for one in stage.rows(models.Group)} == set(expected.groups)
    kinds = {one.id: one.name for one in stage.rows(models.VolumeType)}
    for snapshot in stage.rows(models.Snapshot):
        assert kinds[snapshot.volume_type_id] == expected.snapshots[snapshot.id].kind
    assert set(kinds.values()) >= {PLAIN}


# -- what Ceph holds


def images(stage: Stage, expected: Expected) -> None:
    """Names, sizes, snapshots, data and trash of each back end."""
    trash = expected.trash()
    for backend in trash:
        cluster = stage.cluster(backend)
        here = [one for one in expected.volumes.values() if one.backend == backend]
        left = [one for one in expected.outlived().values() if one.backend == backend]
        assert cluster.images("") == {f"volume-{one.id}" for one in (*here, *left)}
        for volume in (*here, *left):
            _image(stage, expected, volume)
        assert sorted(name for _, name in cluster.trashed()) == sorted(f"volume-{one}" for one in trash[backend])


def _image(stage: Stage, expected: Expected, volume: Volume) -> None:
    cluster, name = stage.cluster(volume.backend), f"volume-{volume.id}"
    found = cluster.info(name)
    there_is = volume.id in expected.volumes
    assert (found.size_bytes, found.watchers) == (volume.size * GIB * there_is, [])
    mine = expected.snapshots_of(volume.id)
    sizes = {f"snapshot-{one.id}": one.size * GIB for one in mine}
    there = {one.name: one.size_bytes for one in cluster.snapshots(name)}
    assert there.keys() == sizes.keys() | {vault.snap_of(one) for one in volume.backups if there_is}
    assert {snap: there[snap] for snap in sizes} == sizes
    if there_is:
        _data(cluster, name, None, volume.data)
    for snapshot in mine:
        _data(cluster, name, f"snapshot-{snapshot.id}", snapshot.data)


def _data(cluster: Any, name: str, snap: str | None, data: Data) -> None:
    """The bytes from the beginning to behind the last one that anybody wrote, zeros in between."""
    length = max((offset + len(piece) for offset, piece in data.items()), default=0) + 8192
    wanted = bytearray(length)
    for offset, piece in data.items():
        wanted[offset : offset + len(piece)] = piece
    with cluster.opened(name, snap) as image:
        assert _pieces(image.read(0, length)) == _pieces(bytes(wanted)), (name, snap)


def _pieces(data: bytes) -> dict[int, bytes]:
    """What is not zero, by its place: for messages that can be read."""
    return {
        at: data[at : at + 512].rstrip(b"\0") for at in range(0, len(data), 512) if data[at : at + 512].strip(b"\0")
    }


def backups(stage: Stage, expected: Expected) -> None:
    """The backup pool has a chain of snapshots for the backups, their data, and nothing else."""
    details = stage.backup_details()
    assert details.keys() == expected.backups.keys()
    chains: dict[str, set[str]] = {}
    for one in details.values():
        chains.setdefault(one["chain"], set()).add(vault.snap_of(one["id"]))
    pool = stage.vault
    assert pool.images("") == chains.keys()
    assert {chain: {one.name for one in pool.snapshots(chain)} for chain in chains} == chains
    assert stage.objects() == {f"cinderlite.backup.{one['id']}" for one in details.values()}
    waiting = {one.details["chain"] for one in stage.rows(models.Backup) if one.status == "deleted"}
    assert {name for _, name in pool.trashed()} == waiting
    for backup_id, one in details.items():
        _data(pool, one["chain"], vault.snap_of(one["id"]), expected.backups[backup_id].data)
        vault.verify(pool, one["chain"], one["id"])
