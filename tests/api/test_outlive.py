# SPDX-License-Identifier: Apache-2.0
"""Volumes that are deleted while there are snapshots of them, which stay, where the operator allows it."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

import pytest
import sqlalchemy
from oslo_config import cfg

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import audit, explain, purge, states, undelete
from cinderlite.db import models
from conftest import Client, configuration, settle
from fakes_cluster import FakeCluster

kept = pytest.mark.parametrize("conf", [{"deleted_volume_retention": 3600}], indirect=True)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def conf(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> cfg.ConfigOpts:
    """Snapshots outlive volumes, unless a test says otherwise."""
    return configuration(tmp_path, **({"snapshots_outlive_volumes": True} | getattr(request, "param", {})))


def image(volume: str) -> str:
    return f"volume-{volume}"


def snapshot(client: Client, volume: str, **fields: Any) -> str:
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True, **fields}})
    assert made.status_code == 202, made.text
    return str(made.json["snapshot"]["id"])


def delete(client: Client, kind: str, which: str, query: str = "") -> None:
    answer = client.delete(f"/v3/{kind}/{which}{query}")
    assert answer.status_code == 202, answer.text


def outlived(client: Client, world: World, cluster: FakeCluster, **fields: Any) -> tuple[str, str]:
    """A deleted volume and its snapshot, which holds "kept"."""
    volume = str(client.volume(**fields)["id"])
    cluster.data[cluster.info(image(volume)).id] = "kept"
    taken = snapshot(client, volume)
    cluster.data[cluster.info(image(volume)).id] = "lost"
    delete(client, "volumes", volume)
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").status_code == 404
    return volume, taken


def row(world: World, volume: str) -> models.Volume:
    with world.db.read() as session:
        return session.get_one(models.Volume, volume)


def due(world: World, volume: str) -> None:
    """Let the time be over for which a volume can be brought back."""
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Volume).where(models.Volume.id == volume).values(purge_at=1.0))


def abandon(world: World) -> None:
    """Let this process's leases lapse, as a dead one's do."""
    with world.db.write() as session:
        for table in (models.Volume, models.Snapshot):
            session.execute(sqlalchemy.update(table).values(lease_owner=None, lease_until=0.0))


def audited(world: World) -> list[tuple[str, str]]:
    return [(one.kind, one.subject) for one in audit.audit(world)]


def used(client: Client) -> tuple[int, int, int]:
    limits = client.get("/v3/limits").json["limits"]["absolute"]
    return limits["totalVolumesUsed"], limits["totalGigabytesUsed"], limits["totalSnapshotsUsed"]


@pytest.mark.parametrize("conf", [{"snapshots_outlive_volumes": False}], indirect=True)
def test_by_default_its_snapshots_keep_a_volume(client: Client) -> None:
    volume = client.volume()["id"]
    snapshot(client, volume)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_the_snapshot_stays_and_makes_volumes(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster, size=2, metadata={"a": "b"})
    [shown] = client.get("/v3/snapshots/detail").json["snapshots"]
    assert (shown["id"], shown["status"], shown["volume_id"], shown["size"]) == (taken, "available", volume, 2)
    assert client.get(f"/v3/snapshots?volume_id={volume}").json["snapshots"]
    assert used(client) == (0, 2, 1)
    # What only the volume had is given back.
    assert cluster.info(image(volume)).size_bytes == 0
    assert cluster.trashed() == []
    clone = client.volume(snapshot_id=taken, size=2)
    assert (clone["size"], clone["status"], clone["snapshot_id"]) == (2, "available", taken)
    assert cluster.data[cluster.info(image(clone["id"])).id] == "kept"
    assert client.put(f"/v3/snapshots/{taken}", {"snapshot": {"name": "n"}}).status_code == 200
    assert client.post(f"/v3/snapshots/{taken}/metadata", {"metadata": {"k": "v"}}).status_code == 200
    assert (audited(world), row(world, volume).busy) == ([], 0)


def test_the_image_goes_with_the_last_snapshot(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    first, second = snapshot(client, volume), snapshot(client, volume)
    delete(client, "volumes", volume)
    settle(world)
    delete(client, "snapshots", first)
    settle(world)
    assert image(volume) in cluster.stored
    assert client.volume(snapshot_id=second)["status"] == "available"
    delete(client, "snapshots", second)
    settle(world)
    # A clone still needs the data.
    assert (image(volume) in cluster.stored, [name for _, name in cluster.trashed()]) == (False, [image(volume)])
    [clone] = client.get("/v3/volumes").json["volumes"]
    delete(client, "volumes", clone["id"])
    settle(world)
    assert (cluster.stored, cluster.trashed()) == ({}, [])
    assert row(world, volume).status == "deleted"
    assert audited(world) == []


def test_what_a_volume_was_goes_on_in_what_is_made_of_it(
    client: Client, admin: Client, world: World, cluster: FakeCluster
) -> None:
    kind = admin.post("/v3/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    volume = client.volume(volume_type="gold")["id"]
    rule = f"/v3/volumes/{volume}/action"
    assert client.post(rule, {"os-set_bootable": {"bootable": True}}).status_code == 200
    assert client.post(rule, {"os-set_image_metadata": {"metadata": {"os": "linux"}}}).status_code == 200
    taken = snapshot(client, volume)
    delete(client, "volumes", volume)
    settle(world)
    assert admin.delete(f"/v3/types/{kind}").status_code == 400
    clone = client.volume(snapshot_id=taken)
    assert (clone["bootable"], clone["volume_image_metadata"], clone["volume_type"]) == (
        "true",
        {"os": "linux"},
        "gold",
    )
    delete(client, "volumes", clone["id"])
    delete(client, "snapshots", taken)
    settle(world)
    assert admin.delete(f"/v3/types/{kind}").status_code == 202


def test_what_needs_a_volume_does_not_find_one(
    client: Client, admin: Client, world: World, cluster: FakeCluster
) -> None:
    volume, taken = outlived(client, world, cluster)
    for body in ({"revert": {"snapshot_id": taken}}, {"os-extend": {"new_size": 2}}):
        assert client.at("3.60").post(f"/v3/volumes/{volume}/action", body).status_code == 404
    assert client.post("/v3/volumes", {"volume": {"source_volid": volume, "size": 1}}).status_code == 404
    assert client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 404
    assert admin.post(f"/v3/snapshots/{taken}/action", {"os-unmanage": {}}).status_code == 400
    assert client.get(f"/v3/snapshots/{taken}").json["snapshot"]["status"] == "available"


def test_another_project_sees_nothing(client: Client, stranger: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    assert stranger.get(f"/v3/snapshots/{taken}").status_code == 404
    assert stranger.delete(f"/v3/snapshots/{taken}").status_code == 404
    assert stranger.post("/v3/volumes", {"volume": {"snapshot_id": taken}}).status_code == 404
    body = {"backup": {"volume_id": volume, "snapshot_id": taken}}
    assert stranger.post("/v3/backups", body).status_code == 404


def test_the_snapshot_is_backed_up(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    assert client.post("/v3/backups", {"backup": {"volume_id": volume}}).status_code == 404
    assert client.post("/v3/backups", {"backup": {"volume_id": volume, "snapshot_id": volume}}).status_code == 404
    made = client.post("/v3/backups", {"backup": {"volume_id": volume, "snapshot_id": taken}})
    assert made.status_code == 202, made.text
    settle(world)
    backup = made.json["backup"]["id"]
    assert client.get(f"/v3/backups/{backup}").json["backup"]["status"] == "available"
    assert client.get(f"/v3/snapshots/{taken}").json["snapshot"]["status"] == "available"
    restored = client.post(f"/v3/backups/{backup}/restore", {"restore": {}}).json["restore"]["volume_id"]
    settle(world)
    assert cluster.data[cluster.info(image(restored)).id] == "kept"
    other = outlived(client, world, cluster)[1]
    assert client.post("/v3/backups", {"backup": {"volume_id": volume, "snapshot_id": other}}).status_code == 404


def test_backups_of_the_volume_leave_nothing(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    backup = client.post("/v3/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"]
    settle(world)
    taken = snapshot(client, volume)
    delete(client, "volumes", volume)
    settle(world)
    assert [one.name for one in cluster.snapshots(image(volume))] == [f"snapshot-{taken}"]
    for kind, which in (("backups", backup), ("snapshots", taken)):
        delete(client, kind, which)
    settle(world)
    assert cluster.stored == {}


def test_with_cascade_the_snapshots_go_too(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    snapshot(client, volume)
    delete(client, "volumes", volume, "?cascade=true")
    settle(world)
    assert (cluster.stored, client.get("/v3/snapshots").json["snapshots"]) == ({}, [])


def test_by_force_it_goes_and_they_stay(client: Client, admin: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    taken = snapshot(client, volume)
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "maintenance"}})
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert admin.post(f"/v3/volumes/{volume}/action", {"os-force_delete": {}}).status_code == 202
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").status_code == 404
    assert client.volume(snapshot_id=taken)["status"] == "available"


@pytest.mark.parametrize("status", ["creating", "backing-up"])
def test_a_snapshot_that_is_at_work_keeps_it(client: Client, admin: Client, world: World, status: str) -> None:
    volume = client.volume()["id"]
    taken = snapshot(client, volume)
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Snapshot).values(status=status))
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Snapshot).values(status="available"))
    assert admin.get(f"/v3/snapshots/{taken}").json["snapshot"]["status"] == "available"


def test_somebody_who_has_it_open_keeps_it(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    snapshot(client, volume)
    cluster.watchers[image(volume)] = ["192.0.2.7:0/7"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert cluster.info(image(volume)).size_bytes == 2**30


def test_nobody_takes_its_image_over(client: Client, admin: Client, world: World, cluster: FakeCluster) -> None:
    volume, _ = outlived(client, world, cluster)
    host = "testhost@ceph#ceph"
    cluster.create("other", 2**30)
    found = admin.at("3.8").get(f"/v3/manageable_volumes/detail?host={host}").json["manageable-volumes"]
    shown = {one["reference"]["source-name"]: one for one in found}
    assert shown["other"]["safe_to_manage"]
    ours = shown[image(volume)]
    assert (ours["safe_to_manage"], ours["reason_not_safe"], ours["cinder_id"]) == (False, "snapshots need it", None)
    assert admin.at("3.8").get(f"/v3/manageable_snapshots?host={host}").json["manageable-snapshots"] == []
    body = {"volume": {"host": host, "ref": {"source-name": image(volume)}}}
    assert admin.at("3.8").post("/v3/manageable_volumes", body).status_code == 400


def test_what_the_audit_finds_of_it(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    cluster.snapshot(image(volume), "snapshot-00000000-0000-4000-8000-000000000000")
    assert [kind for kind, _ in audited(world)] == ["leaked-snapshot"]
    cluster.snaps[cluster.info(image(volume)).id].clear()
    assert audited(world) == [("missing-snapshot", f"{image(volume)}@snapshot-{taken}")]
    del cluster.stored[image(volume)]
    assert audited(world) == [("missing-snapshot", f"{image(volume)}@snapshot-{taken}")]
    # Even so both end.
    delete(client, "snapshots", taken)
    settle(world)
    assert (audited(world), row(world, volume).busy, row(world, volume).status) == ([], 0, "deleted")


def test_it_is_explained(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    told = explain.explain(world, volume)
    assert (told["volume"]["status"], told["unknown"], told["remarks"]) == ("outlived", None, [])
    assert [(one["id"], one["status"]) for one in told["snapshots"]] == [(taken, "available")]


def test_its_row_stays_for_as_long(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    ago = datetime.timedelta(seconds=-1)
    assert purge.purge(world.db, ago)["volumes"] == 0
    delete(client, "snapshots", taken)
    # The snapshot is gone, its image not yet.
    assert purge.purge(world.db, ago)["volumes"] == 0
    settle(world)
    assert purge.purge(world.db, ago)["volumes"] == 1
    with world.db.read() as session:
        assert session.get(models.Volume, volume) is None


def test_a_key_lives_as_long_as_a_snapshot_needs_it(
    client: Client, admin: Client, world: World, cluster: FakeCluster
) -> None:
    kind = admin.post("/v3/types", {"volume_type": {"name": "secret"}}).json["volume_type"]["id"]
    body = {"encryption": {"provider": "luks", "control_location": "front-end"}}
    assert admin.post(f"/v3/types/{kind}/encryption", body).status_code == 200
    volume = client.volume(volume_type="secret")["id"]
    key = row(world, volume).encryption_key_id
    assert key is not None
    assert world.keys is not None
    taken = snapshot(client, volume)
    delete(client, "volumes", volume)
    settle(world)
    clone = client.volume(snapshot_id=taken)
    assert (clone["status"], clone["encrypted"]) == ("available", True)
    delete(client, "snapshots", taken)
    settle(world)
    with pytest.raises(errors.KeyNotFound):
        world.keys.secret(key)


# -- with a time in which it can come back


@kept
def test_it_comes_back_whole(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster, size=2)
    assert (cluster.info(image(volume)).size_bytes, cluster.trashed()) == (2 * 2**30, [])
    assert ([one.id for one in undelete.listed(world)], audited(world)) == ([volume], [])
    assert explain.explain(world, volume)["unknown"] is None
    assert undelete.undelete(world, volume).status == "available"
    assert cluster.data[cluster.info(image(volume)).id] == "lost"
    assert client.get(f"/v3/snapshots/{taken}").json["snapshot"]["status"] == "available"
    assert used(client) == (1, 4, 1)
    delete(client, "volumes", volume, "?cascade=true")
    due(world, volume)
    settle(world)
    assert (cluster.stored, cluster.trashed()) == ({}, [])


@kept
def test_when_its_time_is_over_the_snapshot_stays(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    due(world, volume)
    settle(world)
    assert (cluster.info(image(volume)).size_bytes, undelete.listed(world)) == (0, [])
    with pytest.raises(errors.InvalidVolume):
        undelete.undelete(world, volume)
    clone = client.volume(snapshot_id=taken)["id"]
    assert cluster.data[cluster.info(image(clone)).id] == "kept"


@kept
def test_one_whose_last_snapshot_went_still_comes_back(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    delete(client, "snapshots", taken)
    settle(world)
    assert (cluster.info(image(volume)).size_bytes, audited(world)) == (2**30, [])
    assert undelete.undelete(world, volume).status == "available"
    delete(client, "volumes", volume)
    due(world, volume)
    settle(world)
    assert cluster.stored == {}


@kept
def test_one_that_goes_after_its_last_snapshot(client: Client, world: World, cluster: FakeCluster) -> None:
    volume, taken = outlived(client, world, cluster)
    delete(client, "snapshots", taken)
    due(world, volume)
    settle(world)
    assert (cluster.stored, cluster.trashed()) == ({}, [])


# -- groups


def test_members_of_a_group_snapshot_stay(client: Client, admin: Client, world: World, cluster: FakeCluster) -> None:
    body = {"group_type": {"name": "plain", "group_specs": {"consistent_group_snapshot_enabled": "<is> False"}}}
    group_type = admin.at("3.11").post("/v3/group_types", body).json["group_type"]["id"]
    kind = client.get("/v3/types/default").json["volume_type"]["id"]
    body = {"group": {"group_type": group_type, "volume_types": [kind]}}
    caller = client.at("3.60")
    group = caller.post("/v3/groups", body).json["group"]["id"]
    settle(world)
    volume = client.at("3.60").volume(group_id=group, volume_type=kind)["id"]
    taken = caller.post("/v3/group_snapshots", {"group_snapshot": {"group_id": group}}).json["group_snapshot"]["id"]
    settle(world)
    end = {"delete": {"delete-volumes": True}}
    assert caller.post(f"/v3/groups/{group}/action", end).status_code == 400  # It has a group snapshot.
    caller.put(f"/v3/groups/{group}", {"group": {"remove_volumes": volume}})
    settle(world)
    delete(client, "volumes", volume)
    settle(world)
    [member] = client.get("/v3/snapshots").json["snapshots"]
    made = client.volume(snapshot_id=member["id"])
    assert made["status"] == "available"
    made = caller.post("/v3/groups/action", {"create-from-src": {"group_snapshot_id": taken, "name": "n"}})
    assert made.status_code == 202, made.text
    settle(world)
    assert caller.get(f"/v3/groups/{made.json['group']['id']}").json["group"]["status"] == "available"
    delete(caller, "group_snapshots", taken)
    settle(world)
    assert client.get("/v3/snapshots").json["snapshots"] == []
    assert image(volume) not in cluster.stored
    # And a group goes with its volumes and leaves their own snapshots.
    own = client.at("3.60").volume(group_id=group, volume_type=kind)["id"]
    alone = snapshot(client, own)
    assert caller.post(f"/v3/groups/{group}/action", end).status_code == 202
    settle(world)
    assert caller.get(f"/v3/groups/{group}").status_code == 404
    assert client.get(f"/v3/snapshots/{alone}").json["snapshot"]["status"] == "available"
    assert cluster.info(image(own)).size_bytes == 0


# -- killed half way


@pytest.mark.parametrize("retention", [0, 3600])
@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("verb", ["volume", "snapshot"])
def test_one_that_is_killed_is_finished(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch,
    retention: int, moment: int, verb: str,
) -> None:  # fmt: skip
    object.__setattr__(world.settings, "retention", retention)
    volume = client.volume()["id"]
    cluster.data[cluster.info(image(volume)).id] = "kept"
    taken = snapshot(client, volume)
    left = [moment]

    def die(*_: Any, **__: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def dying(work: Any) -> None:
        with monkeypatch.context() as patch:
            really = states.Machine._settle

            def settled(*arguments: Any) -> Any:
                die()
                return really(*arguments)

            patch.setattr(cluster, "life", die)
            patch.setattr(states.Machine, "_settle", settled)
            try:
                work()
                settle(world)
            except Killed:
                pass
        abandon(world)
        settle(world)

    if verb == "volume":
        dying(lambda: delete(client, "volumes", volume))
    else:
        delete(client, "volumes", volume)
        settle(world)
    if retention:
        assert [one.id for one in undelete.listed(world)] == [volume]
        due(world, volume)
        settle(world)
    clone = client.volume(snapshot_id=taken)["id"]
    assert cluster.data[cluster.info(image(clone)).id] == "kept"
    assert cluster.info(image(volume)).size_bytes == 0
    if verb == "snapshot":
        dying(lambda: delete(client, "snapshots", taken))
    else:
        delete(client, "snapshots", taken)
    delete(client, "volumes", clone)
    due(world, clone)
    settle(world)
    assert (cluster.stored, cluster.trashed(), audited(world)) == ({}, [], [])
    assert (row(world, volume).status, row(world, volume).busy) == ("deleted", 0)


def test_a_snapshot_at_work_with_a_volume_that_goes(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that is being made from the snapshot keeps both, even if that was broken off."""
    volume = client.volume()["id"]
    taken = snapshot(client, volume)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "clone", killed)
        with pytest.raises(Killed):
            client.volume(snapshot_id=taken)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert client.delete(f"/v3/snapshots/{taken}").status_code == 400
    abandon(world)
    settle(world)
    delete(client, "volumes", volume)
    settle(world)
    assert used(client) == (1, 2, 1)
