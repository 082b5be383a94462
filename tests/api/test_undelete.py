# SPDX-License-Identifier: Apache-2.0
"""Deleted volumes that an administrator brings back, as long as there is time for it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import pathlib
import sys
import threading
import time
from typing import Any

import pytest
import sqlalchemy
from oslo_config import cfg

from cinderlite import errors
from cinderlite.cmd import manage as manage_command
from cinderlite.context import World
from cinderlite.core import audit, purge, undelete, volumes
from cinderlite.db import models
from conftest import PROJECT, Client, configuration, settle
from fakes_cluster import FakeCluster


@pytest.fixture
def conf(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> cfg.ConfigOpts:
    """Deleted volumes are kept for an hour, unless a test says otherwise."""
    return configuration(tmp_path, **({"deleted_volume_retention": 3600} | getattr(request, "param", {})))


class Killed(BaseException):
    """The process ends here."""


def image(volume: str) -> str:
    return f"volume-{volume}"


def row(world: World, volume: str) -> models.Volume:
    with world.db.read() as session:
        return session.get_one(models.Volume, volume)


def change(world: World, volume: str, **columns: Any) -> None:
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Volume).where(models.Volume.id == volume).values(**columns))


def abandon(world: World) -> None:
    """Let this process's leases lapse, as a dead one's do."""
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Volume).values(lease_owner=None, lease_until=0.0))


def deleted(client: Client, **fields: Any) -> str:
    """A volume that is not there any more."""
    volume = str(client.volume(**fields)["id"])
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert client.get(f"/v3/volumes/{volume}").status_code == 404
    return volume


def listed(world: World) -> list[str]:
    return [one.id for one in undelete.listed(world)]


def used(client: Client) -> tuple[int, int, int]:
    limits = client.get("/v3/limits").json["limits"]["absolute"]
    return limits["totalVolumesUsed"], limits["totalGigabytesUsed"], limits["totalSnapshotsUsed"]


def test_a_volume_comes_back_as_it_was(client: Client, world: World, cluster: FakeCluster) -> None:
    before = client.volume(name="data", metadata={"k": "v"}, size=2)
    volume = before["id"]
    cluster.data[cluster.info(image(volume)).id] = "kept"
    body = {"snapshot": {"volume_id": volume, "name": "s", "metadata": {"a": "b"}}}
    snapshot = client.post("/v3/snapshots", body).json["snapshot"]["id"]
    held = client.get(f"/v3/snapshots/{snapshot}").json
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    settle(world)
    assert client.get("/v3/volumes").json == {"volumes": []}
    assert client.get("/v3/snapshots").json == {"snapshots": []}
    assert used(client) == (0, 0, 0)
    assert [name for _, name in cluster.trashed()] == [image(volume)]
    [one] = undelete.listed(world)
    assert (one.id, one.name, one.project_id, one.size) == (volume, "data", PROJECT, 2)
    assert one.purge_at is not None
    assert one.deleted_at is not None
    for _ in range(2):
        assert undelete.undelete(world, volume).status == "available"
        after = client.get(f"/v3/volumes/{volume}").json["volume"]
        assert {**after, "updated_at": None} == {**before, "updated_at": None}
    again = client.get(f"/v3/snapshots/{snapshot}").json
    assert again == held
    assert used(client) == (1, 4, 1)
    assert (listed(world), cluster.trashed(), row(world, volume).kept) == ([], [], None)
    clone = client.volume(snapshot_id=snapshot, size=2)["id"]
    assert cluster.data[cluster.info(image(clone)).id] == "kept"
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_it_can_be_deleted_again(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = deleted(client)
    undelete.undelete(world, volume)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert listed(world) == [volume]
    change(world, volume, purge_at=1.0)
    settle(world)
    assert (listed(world), cluster.trashed()) == ([], [])


@pytest.mark.parametrize("conf", [{"deleted_volume_retention": 0}], indirect=True)
def test_without_the_option_nothing_is_kept(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = deleted(client)
    assert listed(world) == []
    with pytest.raises(errors.InvalidVolume, match="cannot be brought back"):
        undelete.undelete(world, volume)
    settle(world)
    assert cluster.trashed() == []


def test_what_never_was(world: World) -> None:
    with pytest.raises(errors.VolumeNotFound):
        undelete.undelete(world, models.new_id())


def test_when_its_time_is_over_it_is_gone(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, other = deleted(client), deleted(client)
    change(world, volume, purge_at=time.time() - 1)
    settle(world)
    assert [name for _, name in cluster.trashed()] == [image(other)]
    assert listed(world) == [other]
    with pytest.raises(errors.InvalidVolume):
        undelete.undelete(world, volume)
    assert client.get(f"/v3/volumes/{volume}").status_code == 404


def test_what_clones_still_need_goes_after_them(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    clone = client.volume(source_volid=volume)["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    change(world, volume, purge_at=1.0)
    settle(world)
    assert [name for _, name in cluster.trashed()] == [image(volume)]
    with pytest.raises(errors.InvalidVolume):
        undelete.undelete(world, volume)
    assert client.delete(f"/v3/volumes/{clone}").status_code == 202
    change(world, clone, purge_at=1.0)
    settle(world)
    assert cluster.trashed() == []


@pytest.mark.parametrize("conf", [{"quota_volumes": 1, "quota_snapshots": 1}], indirect=True)
def test_the_quota_holds_unless_forced(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 202
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    other = client.volume()["id"]
    with pytest.raises(errors.OverQuota):
        undelete.undelete(world, volume)
    assert (listed(world), used(client)) == ([volume], (1, 1, 0))
    assert undelete.undelete(world, volume, force=True).status == "available"
    assert used(client) == (2, 3, 1)
    assert set(cluster.stored) == {image(volume), image(other)}


def test_the_quota_of_snapshots_holds_too(client: Client, world: World) -> None:
    volume = client.volume()["id"]
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 202
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    with world.db.write() as session:
        session.add(models.Quota(project_id=PROJECT, resource="snapshots", limit=0))
    with pytest.raises(errors.OverQuota):
        undelete.undelete(world, volume)
    assert used(client) == (0, 0, 0)


@pytest.mark.parametrize("moment", ["restore", "snapshots", "_settle"])
def test_one_that_was_killed_half_way_is_finished(
    client: Client, world: World, cluster: FakeCluster, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(volumes.LIFECYCLE if moment == "_settle" else cluster, moment, die)
        with pytest.raises(Killed):
            undelete.undelete(world, volume)
    assert (used(client), listed(world)) == ((1, 2, 1), [])
    assert undelete.undelete(world, volume).status == "creating"
    abandon(world)
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert client.get(f"/v3/snapshots/{snapshot}").json["snapshot"]["status"] == "available"
    assert [one.name for one in cluster.snapshots(image(volume))] == [f"snapshot-{snapshot}"]


@pytest.mark.parametrize("moment", ["trash", "_settle"])
def test_a_deletion_that_was_killed_half_way_keeps_the_volume(
    client: Client, world: World, cluster: FakeCluster, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(volumes.LIFECYCLE if moment == "_settle" else cluster, moment, die)
        with pytest.raises(Killed):
            client.delete(f"/v3/volumes/{volume}")
    abandon(world)
    settle(world)
    assert listed(world) == [volume]
    assert undelete.undelete(world, volume).status == "available"


def test_one_that_is_about_to_go_for_good_does_not_come_back(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = deleted(client)
    change(world, volume, purge_at=1.0)
    really = cluster.purge
    refused = []

    def meanwhile(*arguments: Any) -> bool:
        with pytest.raises(errors.InvalidVolume):
            undelete.undelete(world, volume)
        refused.append(True)
        return really(*arguments)

    monkeypatch.setattr(cluster, "purge", meanwhile)
    assert undelete.purge_due(world) == 1
    assert refused
    assert cluster.trashed() == []


def test_one_that_comes_back_does_not_go_for_good(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = deleted(client)
    change(world, volume, purge_at=1.0)
    really = cluster.restore
    begun = []

    def meanwhile(*arguments: Any) -> None:
        begun.append(undelete.purge_due(world))
        really(*arguments)

    monkeypatch.setattr(cluster, "restore", meanwhile)
    assert undelete.undelete(world, volume).status == "available"
    assert begun == [0]
    settle(world)
    assert image(volume) in cluster.stored


def test_of_those_who_want_it_one_gets_it(client: Client, world: World, cluster: FakeCluster) -> None:
    for _ in range(5):
        volume = deleted(client)
        change(world, volume, purge_at=1.0)
        gate = threading.Barrier(4)

        def back(wanted: str = volume, gate: threading.Barrier = gate) -> bool:
            gate.wait(10)
            try:
                return not undelete.undelete(world, wanted).deleted
            except errors.InvalidVolume:
                return False

        def gone(gate: threading.Barrier = gate) -> bool:
            gate.wait(10)
            return undelete.purge_due(world) == 1

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(work) for work in (back, gone, back, gone)]
            ends = [future.result() for future in futures]
        came_back = ends[0] or ends[2]
        assert came_back != (ends[1] or ends[3])
        settle(world)
        there = client.get(f"/v3/volumes/{volume}").status_code == 200
        assert there == came_back == (image(volume) in cluster.stored)
        assert cluster.trashed() == []


def test_an_image_that_was_taken_away_by_hand(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 202
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    cluster.bin.clear()
    with pytest.raises(errors.ImageNotFound):
        undelete.undelete(world, volume)
    assert client.get(f"/v3/volumes/{volume}").status_code == 404
    assert used(client) == (0, 0, 0)
    change(world, volume, purge_at=1.0)
    settle(world)
    assert (row(world, volume).busy, listed(world)) == (0, [])


def test_a_snapshot_that_was_taken_away_by_hand(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    first, second = (
        client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"] for _ in range(2)
    )
    image_id = cluster.info(image(volume)).id
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    del cluster.snaps[image_id][f"snapshot-{first}"]
    undelete.undelete(world, volume)
    assert [one["id"] for one in client.get("/v3/snapshots").json["snapshots"]] == [second]


def test_what_a_backup_left_goes_if_the_backup_went(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    backup = client.post("/v3/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"]
    settle(world)
    assert len(cluster.snapshots(image(volume))) == 1
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert client.delete(f"/v3/backups/{backup}").status_code == 202
    settle(world)
    undelete.undelete(world, volume)
    assert cluster.snapshots(image(volume)) == []
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    change(world, volume, purge_at=1.0)
    settle(world)
    assert cluster.trashed() == []


def test_when_ceph_does_not_answer_nothing_is_begun(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = deleted(client)
    cluster.down = True
    with pytest.raises(errors.CephUnavailable):
        undelete.undelete(world, volume)
    cluster.down = False
    assert listed(world) == [volume]


def test_an_unknown_end_is_found_out(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = deleted(client)

    def in_doubt(*_: Any) -> None:
        raise errors.CephTimeout("the OSD does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "restore", in_doubt)
        with pytest.raises(errors.CephTimeout):
            undelete.undelete(world, volume)
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_a_volume_in_an_error_is_still_in_it(client: Client, admin: Client, world: World) -> None:
    volume = client.volume()["id"]
    body = {"os-reset_status": {"status": "error_restoring"}}
    assert admin.post(f"/v3/volumes/{volume}/action", body).status_code == 202
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert undelete.undelete(world, volume).status == "error"


def test_its_row_and_its_type_stay(client: Client, admin: Client, world: World) -> None:
    kind = admin.post("/v3/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    volume = deleted(client, volume_type="gold")
    change(world, volume, deleted_at=models.utcnow() - datetime.timedelta(days=9))
    assert purge.purge(world.db, datetime.timedelta(days=1))["volumes"] == 0
    assert admin.delete(f"/v3/types/{kind}").status_code == 400
    assert undelete.undelete(world, volume).volume_type_id == kind
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    change(world, volume, purge_at=1.0, deleted_at=models.utcnow() - datetime.timedelta(days=9))
    settle(world)
    assert admin.delete(f"/v3/types/{kind}").status_code == 202
    change(world, volume, deleted_at=models.utcnow() - datetime.timedelta(days=9))
    assert purge.purge(world.db, datetime.timedelta(days=1))["volumes"] == 1


def test_an_audit_finds_nothing_wrong(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = deleted(client)
    assert list(audit.audit(world)) == []
    cluster.bin["0123456789ab"] = image(volume)
    assert [one.kind for one in audit.audit(world)] == ["trash"]


def test_it_is_in_no_group_any_more(client: Client, admin: Client, world: World) -> None:
    volume = client.volume()["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    change(world, volume, group_id=models.new_id())  # As after a deletion of its whole group.
    assert undelete.undelete(world, volume).group_id is None
    assert admin.get(f"/v3/volumes/{volume}").status_code == 200


def manage(monkeypatch: pytest.MonkeyPatch, world: World, *words: str) -> int:
    """Run the command over the world of fakes."""
    monkeypatch.setattr(manage_command, "_world", lambda _conf: contextlib.nullcontext(world))
    monkeypatch.setattr(sys, "argv", ["cinderlite-manage", "volume", *words])
    return manage_command.main()


def test_the_commands(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert manage(monkeypatch, world, "deleted") == 0
    assert capsys.readouterr().out.split() == ["ID", "NAME", "PROJECT", "GIB", "DELETED", "AT", "PURGED", "AT"]
    named, nameless, unknown = deleted(client, name="data", size=2), deleted(client), models.new_id()
    change(world, named, deleted_at=datetime.datetime(2026, 1, 31, 12, 0, 0), purge_at=1769864400.0)  # noqa: DTZ001
    assert manage(monkeypatch, world, "deleted") == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [named, "data", PROJECT, "2", "2026-01-31T12:00:00Z", "2026-01-31T13:00:00Z"]
    assert second.split()[:4] == [nameless, "-", PROJECT, "1"]
    assert manage(monkeypatch, world, "undelete", nameless, unknown, named) == 1
    told = capsys.readouterr().out.splitlines()
    assert [told[0], told[2]] == [f"{nameless}: available", f"{named}: available"]
    assert unknown in told[1]
    assert client.get(f"/v3/volumes/{named}").status_code == 200
    assert manage(monkeypatch, world, "undelete", named) == 0


def test_the_command_with_force(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = deleted(client)
    with world.db.write() as session:
        session.add(models.Quota(project_id=PROJECT, resource="volumes", limit=0))
    assert manage(monkeypatch, world, "undelete", volume) == 1
    assert capsys.readouterr().out.startswith(f"{volume}: ")
    assert listed(world) == [volume]
    assert manage(monkeypatch, world, "undelete", "--force", volume) == 0
    assert capsys.readouterr().out == f"{volume}: available\n"
