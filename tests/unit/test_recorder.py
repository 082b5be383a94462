# SPDX-License-Identifier: Apache-2.0
"""What Ceph is told of rows, when, and by whom: records follow every change and go with what they are about."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import select, update

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import reconcile, records
from cinderlite.core.recorder import Recorder
from cinderlite.db import models
from conftest import Client, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

GOLD = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
TWO = {"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "second"}


@pytest.fixture
def recorder(world: World) -> Recorder:
    return Recorder(world)


def held(cluster: FakeCluster) -> dict[str, dict[str, Any]]:
    """What the records of rows say, by key."""
    return {
        key: json.loads(text.partition(b" ")[2])
        for name in records.objects()
        for key, text in cluster.entries(name).items()
    }


def test_every_change_is_written_once(client: Client, recorder: Recorder, cluster: FakeCluster) -> None:
    volume = client.volume(name="data", metadata={"a": "b"})
    assert recorder.once() == 1
    assert recorder.once() == 0
    key = f"volumes/{volume['id']}"
    said = held(cluster)[key]
    assert (said["row"]["name"], said["row"]["status"], said["type"]) == ("data", "available", "__DEFAULT__")
    assert [(one["key"], one["value"]) for one in said["parts"]["metadata_rows"]] == [("a", "b")]
    url = f"/v3/volumes/{volume['id']}"
    changes: list[tuple[str, str, Any, Callable[[Any, Any], bool]]] = [
        ("PUT", url, {"volume": {"name": "other"}}, lambda row, _: row["name"] == "other"),
        ("POST", f"{url}/metadata", {"metadata": {"c": "d"}}, lambda _, parts: len(parts["metadata_rows"]) == 2),
        ("DELETE", f"{url}/metadata/a", None, lambda _, parts: len(parts["metadata_rows"]) == 1),
        ("POST", f"{url}/action", {"os-set_bootable": {"bootable": True}}, lambda row, _: row["bootable"]),
        ("POST", f"{url}/action", {"os-set_image_metadata": {"metadata": {"x": "y"}}},
         lambda _, parts: len(parts["image_metadata_rows"]) == 1),
        ("POST", f"{url}/action", {"os-extend": {"new_size": 3}}, lambda row, _: row["size"] == 3),
    ]  # fmt: skip
    for method, path, body, found in changes:
        assert client.request(method, path, body).status_code in (200, 202, 204)
        assert recorder.once() == 1
        said = held(cluster)[key]
        assert found(said["row"], said["parts"]), said
        assert recorder.once() == 0
    assert client.delete(url).status_code == 202
    settle(recorder._world)
    recorder.once()
    assert held(cluster) == {}
    assert recorder.once() == 0


def test_a_change_meanwhile_is_written_too(
    client: Client, world: World, recorder: Recorder, cluster: FakeCluster
) -> None:
    volume = client.volume(name="first")

    def rename() -> None:
        cluster.life = lambda: None
        client.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": "second"}})

    cluster.life = rename
    assert recorder.once() == 1
    assert held(cluster)[f"volumes/{volume['id']}"]["row"]["name"] == "first"
    assert recorder.once() == 1
    assert held(cluster)[f"volumes/{volume['id']}"]["row"]["name"] == "second"


def test_what_is_gone_has_no_record(
    client: Client, admin: Client, world: World, recorder: Recorder, cluster: FakeCluster, vault: FakeCluster,
    hypervisor: FakeHypervisor,
) -> None:  # fmt: skip
    server = hypervisor.add_server("vm1", client.headers["X-Test-Project"])
    volume = client.volume()
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume["id"]}}).json["snapshot"]
    backup = client.post("/v3/backups", {"backup": {"volume_id": volume["id"]}}).json["backup"]
    settle(world)
    url = f"/v2.1/servers/{server.id}/os-volume_attachments"
    assert client.post(url, {"volumeAttachment": {"volumeId": volume["id"]}}).status_code == 200
    recorder.once()
    kinds = {key.partition("/")[0] for key in held(cluster)}
    assert kinds == {"volumes", "snapshots", "attachments"}
    assert list(held(vault)) == [f"backups/{backup['id']}"]
    assert client.delete(f"{url}/{volume['id']}").status_code == 202
    assert client.delete(f"/v3/snapshots/{snapshot['id']}").status_code == 202
    assert client.delete(f"/v3/backups/{backup['id']}").status_code == 202
    settle(world)
    recorder.once()
    assert list(held(cluster)) == [f"volumes/{volume['id']}"]
    assert held(vault) == {}
    with world.db.read() as session:
        assert session.scalars(select(models.GoneRecord)).all() == []


@pytest.mark.parametrize("conf", [TWO], indirect=True)
def test_records_move_with_their_volume(client: Client, admin: Client, world: World, recorder: Recorder) -> None:
    cluster_of(world, "ceph").free_bytes *= 2
    volume = client.volume()
    client.post("/v3/snapshots", {"snapshot": {"volume_id": volume["id"]}})
    recorder.once()
    assert len(held(cluster_of(world))) == 2
    for there, away in (("fast", "ceph"), ("ceph", "fast")):
        body = {"os-migrate_volume": {"host": f"testhost@{there}#{there}"}}
        assert admin.post(f"/v3/volumes/{volume['id']}/action", body).status_code == 202
        settle(world)
        recorder.once()
        recorder.once()
        assert len(held(cluster_of(world, there))) == 2
        assert held(cluster_of(world, away)) == {}


@pytest.mark.parametrize("conf", [TWO], indirect=True)
def test_a_dead_back_end_holds_no_other_up(client: Client, admin: Client, world: World, recorder: Recorder) -> None:
    for name in ("ceph", "fast"):
        cluster_of(world, name).free_bytes += 1
    admin.post("/v3/types", {"volume_type": {"name": "quick", "extra_specs": {"volume_backend_name": "fast"}}})
    client.volume(), client.volume(volume_type="quick")
    down = cluster_of(world)
    down.down = True
    assert recorder.once() == 1
    down.down = False
    assert recorder.once() == 1
    assert all(len(held(cluster_of(world, name))) == 1 for name in ("ceph", "fast"))


def test_one_process_writes_at_a_time(client: Client, world: World, recorder: Recorder, cluster: FakeCluster) -> None:
    client.volume()
    assert recorder.once() == 1
    client.volume()
    other = Recorder(world)
    assert other.once() == 0
    # Its machine is another one: nobody here can see whether it lives.
    with world.db.write() as session:
        session.execute(update(models.Recorder).values(lease_owner="elsewhere/boot/1/1/x"))
    assert other.once() == 0
    with world.db.write() as session:
        session.execute(update(models.Recorder).values(lease_until=0.0))
    assert other.once() == 1
    other.let_go()
    client.volume()
    recorder._until = 0.0
    assert recorder.once() == 1


def test_the_key_goes_with_the_volume(
    client: Client, admin: Client, world: World, recorder: Recorder, cluster: FakeCluster
) -> None:
    made = admin.post("/v3/types", {"volume_type": {"name": "gold"}}).json["volume_type"]["id"]
    assert admin.post(f"/v3/types/{made}/encryption", {"encryption": GOLD}).status_code == 200
    volume = client.volume(volume_type="gold")
    # A clone keeps the image in the trash for ever.
    client.volume(source_volid=volume["id"], volume_type="gold")
    recorder.once()
    key = f"volumes/{volume['id']}"
    with world.db.read() as session:
        row = session.get_one(models.Volume, volume["id"])
        wrapped = session.get_one(models.EncryptionKey, row.encryption_key_id).wrapped
    assert held(cluster)[key]["key"] == wrapped
    assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 202
    settle(world, passes=1)  # The recorder may come late.
    assert key not in held(cluster)
    recorder.once()
    assert "key" not in held(cluster)[key]
    assert wrapped not in str(cluster.omaps)


def test_work_that_waits_is_not_written_again(
    client: Client, world: World, recorder: Recorder, cluster: FakeCluster
) -> None:
    volume = client.volume()
    client.volume(source_volid=volume["id"])
    client.delete(f"/v3/volumes/{volume['id']}")
    for _ in range(2):
        recorder.once()
        assert reconcile.hasten(world) == 1
        assert reconcile.once(world) == 1
    assert recorder.once() == 0


def test_the_catalogue_follows_administrators(
    admin: Client, world: World, recorder: Recorder, cluster: FakeCluster
) -> None:
    recorder.once()
    [(database_id, before)] = cluster.entries(records.CATALOGUE).items()
    admin.post("/v3/types", {"volume_type": {"name": "gold", "extra_specs": {"a": "b"}}})
    recorder._catalogue_at = 0.0
    recorder.once()
    now = cluster.entries(records.CATALOGUE)
    assert list(now) == [database_id]
    said = json.loads(now[database_id].partition(b" ")[2])
    assert [one["name"] for one in said["volume_types"] if one["name"] == "gold"]
    assert [(one["key"], one["value"]) for one in said["volume_type_extra_specs"]] == [("a", "b")]
    assert before != now[database_id]


def test_records_are_signed(client: Client, world: World, recorder: Recorder, cluster: FakeCluster) -> None:
    volume = client.volume()
    recorder.once()
    key = f"volumes/{volume['id']}"
    stored = cluster.entries(records.object_of(volume["id"]))[key]
    assert records.parsed(world.signing, "", key, stored).id == volume["id"]
    forged = stored.replace(b"aaaaaaaa11114111811111111111aaaa", b"bbbbbbbb22224222822222222222bbbb")
    assert forged != stored
    with pytest.raises(errors.InvalidInput, match="not signed"):
        records.parsed(world.signing, "", key, forged)
    assert records.parsed(world.signing, "", key, forged, unsigned=True).row["project_id"].startswith("bbbb")
    assert records.parsed(None, "", key, forged).row["project_id"].startswith("bbbb")
    # It is about itself only.
    with pytest.raises(errors.InvalidInput, match="something else"):
        records.parsed(world.signing, "", f"volumes/{models.new_id()}", stored)
    for nonsense in (
        b"",
        b"-",
        b"- {",
        b"- []",
        b'- {"kind":"volumes"}',
        b'- {"kind":"volumes","row":{"id":7},"parts":{}}',
    ):
        with pytest.raises(errors.InvalidInput):
            records.parsed(None, "", key, nonsense)


def test_every_recorded_table_is_marked_by_any_statement(client: Client, world: World, recorder: Recorder) -> None:
    client.volume()
    recorder.once()
    with world.db.write() as session:
        session.execute(update(models.Volume).values(name="by hand"))
    with world.db.read() as session:
        assert session.scalar(select(models.Volume.unwritten)) is not None
    assert {kind.model for kind in records.KINDS} == {
        mapper.class_ for mapper in models.Base.registry.mappers if issubclass(mapper.class_, models.Recorded)
    }
    assert all("unwritten" in sqlalchemy.inspect(kind.model).columns for kind in records.KINDS)
