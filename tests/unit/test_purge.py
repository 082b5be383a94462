# SPDX-License-Identifier: Apache-2.0
"""Old deleted rows go, and nothing else does."""

from __future__ import annotations

import datetime
import pathlib
import sys
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from cinderlite.cmd import manage
from cinderlite.context import Context, World
from cinderlite.core import purge, volumes
from cinderlite.db import migrate, models
from conftest import settle
from fakes_cluster import FakeCluster

DAY = datetime.timedelta(days=1)


def gone(ctx: Context, *, days: float, **columns: Any) -> str:
    """A volume with metadata, deleted so many days ago and purged from Ceph."""
    volume = volumes.create(ctx, size=1, metadata={"k": "v"})
    volumes.delete(ctx, volume)
    settle(ctx.world)
    change(ctx.world, volume.id, deleted_at=models.utcnow() - days * DAY, **columns)
    return volume.id


def change(world: World, volume_id: str, **columns: Any) -> None:
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == volume_id).values(**columns))


def add(world: World, row: Any) -> None:
    with world.db.write() as session:
        session.add(row)


def left(world: World) -> set[str]:
    with world.db.read() as session:
        assert set(session.scalars(select(models.VolumeMetadata.volume_id))) == set(
            session.scalars(select(models.Volume.id))
        )
        return set(session.scalars(select(models.Volume.id)))


def test_what_was_deleted_long_ago_goes_with_what_hangs_on_it(ctx: Context, world: World) -> None:
    alive = volumes.create(ctx, size=1, metadata={"k": "v"}).id
    old, young = gone(ctx, days=31), gone(ctx, days=29)
    assert purge.purge(world.db, 30 * DAY)["volumes"] == 1
    assert left(world) == {alive, young}
    assert old not in left(world)


def test_what_still_has_work_to_do_stays(ctx: Context, world: World, cluster: FakeCluster) -> None:
    volume = volumes.create(ctx, size=1, metadata={"k": "v"})
    cluster.children.add(cluster.info(volume.image).id)
    volumes.delete(ctx, volume)
    change(world, volume.id, deleted_at=models.utcnow() - 100 * DAY)
    assert purge.purge(world.db, DAY)["volumes"] == 0
    cluster.children.clear()
    settle(world)
    change(world, volume.id, deleted_at=models.utcnow() - 100 * DAY)
    assert purge.purge(world.db, DAY)["volumes"] == 1


def test_what_a_row_names_stays_as_long_as_the_row(ctx: Context, world: World) -> None:
    common = {"project_id": "p", "user_id": "u", "status": "available"}
    with world.db.read() as session:
        kind = session.scalars(select(models.VolumeType.id)).one()
    of_snapshot, of_backup, of_clone, of_transfer, of_intent = (gone(ctx, days=9) for _ in range(5))
    clone = volumes.create(ctx, size=1, metadata={"k": "v"}).id
    change(world, clone, source_volid=of_clone)
    worker = volumes.create(ctx, size=1, metadata={"k": "v"}).id
    change(world, worker, intent={"verb": "fill", "source": {"id": of_intent}}, busy=1, lease_until=9e9)
    add(world, models.Snapshot(volume_id=of_snapshot, volume_type_id=kind, volume_size=1, **common))
    add(world, models.Backup(volume_id=of_backup, size=1, **common))
    offer = models.Transfer(volume_id=of_transfer, salt="s", digest="d", source_project_id="p")
    add(world, offer)
    everything = {of_snapshot, of_backup, of_clone, of_transfer, of_intent, clone, worker}
    assert purge.purge(world.db, DAY) == {"transfers": 0, "volumes": 0}
    assert left(world) == everything
    with world.db.write() as session:
        session.execute(delete(models.Snapshot))
        session.execute(delete(models.Backup))
        session.execute(update(models.Transfer).values(deleted=True, deleted_at=models.utcnow() - 9 * DAY))
    change(world, clone, deleted=True, deleted_at=models.utcnow() - 9 * DAY)
    change(world, worker, intent=None, busy=0)
    assert purge.purge(world.db, DAY) == {"transfers": 1, "volumes": 6}
    assert left(world) == {worker}


def test_more_than_a_batch_goes(ctx: Context, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "BATCH", 2)
    for _ in range(5):
        gone(ctx, days=3)
    assert purge.purge(world.db, DAY)["volumes"] == 5


def test_every_column_that_may_hold_a_volumes_id_is_looked_at() -> None:
    known = {str(column) for column in purge._naming(models.Volume)}
    going_along = {"volume_metadata.volume_id", "volume_image_metadata.volume_id"}
    for table in models.Base.metadata.sorted_tables:
        for column in table.columns:
            if column.name.endswith(("volume_id", "volid")):
                assert str(column) in known | going_along, f"{column}: see purge.LOOSE"


def test_the_command(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "conf"
    conf.write_text(f"[DEFAULT]\nstate_path = {tmp_path}\n", encoding="utf-8")
    migrate.upgrade(f"sqlite:///{tmp_path}/cinderlite.sqlite")
    words = ["cinderlite-manage", "--config-file", str(conf), "db", "purge"]
    monkeypatch.setattr(sys, "argv", [*words, "30"])
    assert manage.main() == 0
    assert capsys.readouterr().out == "transfers: 0\nvolumes: 0\n"
    for wrong in ("0", "-1", "x", "1.5"):
        monkeypatch.setattr(sys, "argv", [*words, wrong])
        with pytest.raises(SystemExit):
            manage.main()
