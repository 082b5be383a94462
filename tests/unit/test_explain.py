# SPDX-License-Identifier: Apache-2.0
"""What an operator is told of a volume."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import update

from cinderlite import app as composition
from cinderlite import errors
from cinderlite.cmd import manage
from cinderlite.context import World
from cinderlite.core import explain
from cinderlite.db import models
from conftest import Client, cluster_of, settle
from fakes_cluster import FakeCluster

GIB = 2**30
TWO = pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)


def snapshot(client: Client, volume: str) -> str:
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume, "name": "monday"}})
    assert made.status_code == 202, made.text
    return str(made.json["snapshot"]["id"])


def change(world: World, volume: str, **values: Any) -> None:
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == volume).values(**values))


def text(told: dict[str, Any]) -> str:
    return "\n".join(explain.lines(told))


def test_both_sides_of_a_volume(client: Client, world: World, cluster: FakeCluster) -> None:
    first = client.volume(name="base", size=2)["id"]
    taken = snapshot(client, first)
    second = client.volume(snapshot_id=taken, size=2)["id"]
    third = client.volume(source_volid=second, size=2)["id"]
    with cluster.opened(f"volume-{first}", write=True) as image:
        image.write(5 * 2**20, b"x")
    told = explain.explain(world, first)
    json.dumps(told)
    assert told["volume"]["status"] == "available"
    assert told["work"] is None
    assert (told["image"]["size_bytes"], told["image"]["used_bytes"]) == (2 * GIB, 4 * 2**20)
    assert [one["image"] for one in told["image"]["children"]] == [f"volume-{second}"]
    assert [(one["name"], one["id"], one["status"]) for one in told["snapshots"]] == [
        (f"snapshot-{taken}", taken, "available")
    ]
    assert told["remarks"] == []
    # By its name, by its image's; and the chain from below.
    assert explain.explain(world, "base") == told
    assert explain.explain(world, f"volume-{first}") == told
    below = explain.explain(world, third)
    assert [one["image"] for one in below["image"]["parents"]] == [f"volume-{second}", f"volume-{first}"]
    shown = text(told)
    assert '"base"' in shown
    assert f"snapshot-{taken}, 2 GiB: available" in shown
    assert f"volumes/volume-{second}" in shown


def test_a_name_must_be_one_volumes(client: Client, world: World) -> None:
    ids = {client.volume(name="twin")["id"] for _ in range(2)}
    with pytest.raises(errors.InvalidInput) as refused:
        explain.explain(world, "twin")
    assert all(one in str(refused.value) for one in ids)
    with pytest.raises(errors.VolumeNotFound):
        explain.explain(world, "nobody")


def test_work_under_way(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.stuck = True
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    told = explain.explain(world, volume)
    assert told["work"]["verb"] == "delete"
    assert told["work"]["tries"] == 1
    assert "did not answer in time" in told["work"]["last_error"]
    assert "an earlier call" in told["unknown"]
    assert "which is dead" not in told["work"]["owner"]  # Its call may still have an effect.
    assert "done by process" in text(told)
    change(world, volume, lease_owner=None)
    assert explain.explain(world, volume)["work"]["owner"] is None
    cluster.release()


def test_work_on_something_else(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.stuck = True
    made = client.post("/v3/volumes", {"volume": {"size": 1, "source_volid": volume}}).json["volume"]["id"]
    cluster.release()
    told = explain.explain(world, volume)
    assert told["work"] is None
    assert [(one["kind"], one["id"], one["work"]["verb"]) for one in told["work_elsewhere"]] == [
        ("volume", made, "create")
    ]
    assert f"volume {made} creating: create" in text(told)
    settle(world)
    assert explain.explain(world, volume)["work_elsewhere"] == []


def test_a_deleted_volume_that_clones_keep(client: Client, world: World) -> None:
    volume = client.volume()["id"]
    copy = client.volume(source_volid=volume)["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    told = explain.explain(world, volume)
    assert (told["volume"]["status"], told["work"]["verb"]) == ("deleted", "purge")
    assert [one["image"] for one in told["image"]["children"]] == [f"volume-{copy}"]
    [parent] = explain.explain(world, copy)["image"]["parents"]
    assert parent["trashed"] is True
    assert "in the trash" in text(explain.explain(world, copy))


def test_what_does_not_fit_is_said(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    taken = snapshot(client, volume)
    name = f"volume-{volume}"
    cluster.grow(name, 3 * GIB)
    cluster.remove_snapshot(name, f"snapshot-{taken}")
    cluster.watchers[name] = ["192.0.2.7:0/1"]
    told = explain.explain(world, volume)
    assert told["image"]["watchers"] == ["192.0.2.7:0/1"]
    size, watched, missing = told["remarks"]
    assert "3 GiB" in size
    assert "attached nowhere" in watched
    assert taken in missing
    assert "not in Ceph" in text(told)


def test_the_services_own_work_has_the_image_open(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.7:0/1"]
    with world.db.write() as session:
        session.add(models.Flatten(id=volume, status="flattening", busy=1, intent={"verb": "flatten"}))
    told = explain.explain(world, volume)
    assert [(one["kind"], one["work"]["verb"]) for one in told["work_elsewhere"]] == [("flatten", "flatten")]
    assert told["remarks"] == []


def test_a_deleted_volume_that_can_come_back(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    image_id = cluster.trash(f"volume-{volume}")
    change(world, volume, deleted=True, status="deleted", kept={"image_id": image_id, "snaps": []})
    assert explain.explain(world, volume)["image"]["id"] == image_id


def test_an_image_that_is_gone_and_a_cluster_that_is_down(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    kept = cluster.stored.pop(f"volume-{volume}")
    assert explain.explain(world, volume)["unknown"] == "volumes has no such image"
    cluster.stored[f"volume-{volume}"] = kept
    cluster.down = True
    told = explain.explain(world, volume)
    assert (told["image"], told["volume"]["size"]) == (None, 1)
    assert "the fake is down" in text(told)


@TWO
def test_a_volume_that_moves_is_opened_only_where_it_may_be(client: Client, world: World) -> None:
    volume = client.volume()["id"]
    name, source, target = f"volume-{volume}", cluster_of(world), cluster_of(world, "fast")
    target.stored[name] = source.stored.pop(name)
    source.migrations[name] = "preparing"
    change(world, volume, busy=1, intent={"verb": "migrate", "host": "testhost@fast#fast"}, status="maintenance")
    told = explain.explain(world, volume)
    assert (told["migration"], told["image"], told["unknown"]) == ("preparing", None, None)
    assert "nobody may open it" in text(told)
    source.migrations[name] = "executing"
    told = explain.explain(world, volume)
    assert (told["migration"], told["image"]["pool"]) == ("executing", "nvme")


def test_the_command(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = client.volume(name="data")["id"]
    monkeypatch.setattr(composition, "real_world", lambda _conf: world)
    monkeypatch.setattr("sys.argv", ["cinderlite-manage", "explain", "data", "--json"])
    assert manage.main() == 0
    assert json.loads(capsys.readouterr().out)["volume"]["id"] == volume
    monkeypatch.setattr("sys.argv", ["cinderlite-manage", "explain", "nothing"])
    assert manage.main() == 1
    assert "could not be found" in capsys.readouterr().err
