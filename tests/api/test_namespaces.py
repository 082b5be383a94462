# SPDX-License-Identifier: Apache-2.0
"""A back end with an RBD namespace for each project: what is where, and that all else is as without.

The tests that are imported run here once more, on such a back end.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from oslo_config import cfg
from sqlalchemy import select, update

from api.test_attachments import (  # noqa: F401
    server,
    test_a_guest_that_holds_on,
    test_a_refusal_rolls_everything_back,
    test_keys_by_version,
)
from api.test_backups import (  # noqa: F401
    test_a_backup_is_made_and_shown,
    test_a_backup_is_restored_into_a_new_volume,
    test_a_backup_is_restored_over_a_volume,
    test_a_backup_of_a_snapshot_has_what_that_had,
    test_an_increment_stores_what_changed_and_stands_for_itself,
    test_deleting_a_volume_leaves_its_backups,
)
from api.test_clone_depth import test_with_no_depth_every_clone_is_made_whole  # noqa: F401
from api.test_images import (  # noqa: F401
    test_a_raw_image_becomes_a_bootable_volume,
    test_an_image_is_written_over_a_volume,
)
from api.test_snapshots import (  # noqa: F401
    test_a_snapshot_is_there_when_the_answer_comes,
    test_a_volume_from_a_snapshot_has_its_data,
    test_a_volume_from_a_volume_has_its_data,
    test_a_volume_goes_back_to_its_newest_snapshot,
    test_a_volume_grows,
    test_a_volume_in_use_grows_since_342,
    test_a_volume_with_snapshots_goes_only_with_them,
    test_an_interrupted_snapshot_is_finished,
    test_lifetimes_are_decoupled,
)
from api.test_transfers import accept, offer, snapshot, status
from api.test_volumes import (  # noqa: F401
    test_a_failed_create_is_an_error_with_a_message,
    test_an_image_that_somebody_has_open_is_not_deleted,
    test_the_first_get_is_final,
    test_when_ceph_does_not_answer_nothing_is_begun,
)
from cinderlite import app as composition
from cinderlite import errors
from cinderlite.ceph.namespaces import of_project
from cinderlite.context import Context, World
from cinderlite.core import audit, checkup, explain, holders
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, cluster_of, configuration, settle
from fakes_cluster import FakeCluster
from fakes_glance import FakeGlance
from fakes_hypervisor import FakeHypervisor

GIB = 2**30
HOST = "testhost@ceph#ceph"
ON = {"ceph__rbd_namespace_per_project": True}
INTERNAL = "cccccccc33334333833333333333cccc"
CACHE = {
    **ON,
    "ceph__image_volume_cache_enabled": True,
    "cinder_internal_tenant_project_id": INTERNAL,
    "cinder_internal_tenant_user_id": "cinder",
}
TWO = {
    **ON,
    "enabled_backends": ["ceph", "fast", "slow"],
    "fast__rbd_pool": "nvme",
    "fast__rbd_namespace_per_project": True,
    "slow__rbd_pool": "disks",
}


@pytest.fixture
def conf(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> cfg.ConfigOpts:
    """The configuration with the option on, whatever else a test wants of it."""
    return configuration(tmp_path, **ON | dict(getattr(request, "param", {})))


def pool(world: World, backend: str = "ceph") -> FakeCluster:
    """The default namespace of a back end."""
    return cluster_of(world, backend).within("")


def image(cluster: FakeCluster, volume: str) -> str:
    """Id of a volume's image, which must be there."""
    return cluster.info(f"volume-{volume}").id


def test_each_project_has_its_own(client: Client, stranger: Client, world: World, cluster: FakeCluster) -> None:
    mine, theirs = client.volume()["id"], stranger.volume()["id"]
    assert cluster.place == f"volumes/{PROJECT}"
    assert cluster.images("") == {f"volume-{mine}"}
    assert pool(world).within(OTHER).images("") == {f"volume-{theirs}"}
    assert pool(world).images("") == set()


def test_a_volume_of_before_stays_where_it_is(client: Client, world: World, cluster: FakeCluster) -> None:
    old = client.volume()["id"]
    with world.db.write() as session:
        session.execute(update(models.Volume).values(namespace=""))
    cluster.move(f"volume-{old}", cluster.pool, "")
    taken = snapshot(client, old)
    assert [one.name for one in pool(world).snapshots(f"volume-{old}")] == [f"snapshot-{taken}"]
    for source in ({"snapshot_id": taken}, {"source_volid": old}):
        clone = client.volume(**source)
        assert clone["status"] == "available"
        assert cluster.parents[image(cluster, clone["id"])] == image(pool(world), old)
    backup = client.post("/v3/backups", {"backup": {"volume_id": old}}).json["backup"]["id"]
    assert client.get(f"/v3/backups/{backup}").json["backup"]["status"] == "available"
    assert client.delete(f"/v3/snapshots/{taken}").status_code == 202
    assert client.delete(f"/v3/volumes/{old}").status_code == 202
    assert f"volume-{old}" not in pool(world).stored
    assert list(audit.audit(world)) == []


def test_how_others_are_told_to_open_it(client: Client, hypervisor: FakeHypervisor) -> None:
    volume = client.volume()["id"]
    connector = {"connector": {"host": "compute1", "initiator": "iqn"}}
    told = client.post(f"/v3/volumes/{volume}/action", {"os-initialize_connection": connector})
    assert told.json["connection_info"]["data"]["name"] == f"volumes/{PROJECT}/volume-{volume}"
    vm = hypervisor.add_server("vm", PROJECT).id
    body = {"volumeAttachment": {"volumeId": client.volume()["id"]}}
    assert client.post(f"/v2.1/servers/{vm}/os-volume_attachments", body).status_code == 200
    [disk] = hypervisor.guests[vm].held.values()
    assert (disk.pool, disk.namespace) == ("volumes", PROJECT)


def test_deleting_empties_the_namespaces_own_trash(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert list(cluster.bin.values()) == [f"volume-{volume}"]
    assert pool(world).bin == {}
    settle(world)
    assert cluster.bin == {}


# -- transfers


def test_a_transferred_volume_moves_to_its_new_project(
    client: Client, stranger: Client, world: World, cluster: FakeCluster
) -> None:
    volume = client.volume()["id"]
    cluster.data[image(cluster, volume)] = "a gift"
    taken = snapshot(client, volume)
    assert accept(stranger, offer(client, volume)).status_code == 202
    assert status(stranger, volume) == "available"
    theirs = pool(world).within(OTHER)
    assert theirs.data[image(theirs, volume)] == "a gift"
    assert [one.name for one in theirs.snapshots(f"volume-{volume}")] == [f"snapshot-{taken}"]
    assert cluster.images("") == set()
    assert stranger.volume(snapshot_id=taken)["status"] == "available"
    assert list(audit.audit(world)) == []


def test_what_it_shared_with_its_former_project_is_copied(
    client: Client, stranger: Client, world: World, cluster: FakeCluster
) -> None:
    first = client.volume()["id"]
    clone = client.volume(source_volid=first)["id"]
    assert image(cluster, clone) in cluster.parents
    assert accept(stranger, offer(client, clone)).status_code == 202
    theirs = pool(world).within(OTHER)
    assert image(theirs, clone) not in theirs.parents
    with world.db.read() as session:
        assert session.get_one(models.Volume, clone).clone_depth == 0


def test_what_others_share_is_not_transferred(client: Client, stranger: Client) -> None:
    volume = client.volume()["id"]
    clone = client.volume(source_volid=volume)["id"]
    refused = client.post("/v3/volume-transfers", {"transfer": {"volume_id": volume}})
    assert (refused.status_code, "share its data" in refused.text) == (400, True)
    assert client.delete(f"/v3/volumes/{clone}").status_code == 202


def test_a_clone_that_was_made_after_the_offer_ends_it(client: Client, stranger: Client, world: World) -> None:
    volume = client.volume()["id"]
    taken = snapshot(client, volume)
    made = offer(client, volume)
    client.volume(snapshot_id=taken)
    assert accept(stranger, made).status_code == 400
    assert status(client, volume) == "awaiting-transfer"


def test_snapshots_cannot_stay_behind(client: Client) -> None:
    volume = client.volume()["id"]
    body = {"transfer": {"volume_id": volume, "no_snapshots": True}}
    assert client.at("3.55").post("/v3/volume-transfers", body).status_code == 202
    other = client.volume()["id"]
    snapshot(client, other)
    body["transfer"]["volume_id"] = other
    refused = client.at("3.55").post("/v3/volume-transfers", body)
    assert (refused.status_code, "snapshots" in refused.text) == (400, True)
    assert status(client, other) == "available"


def test_within_a_project_nothing_moves(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    assert accept(client, offer(client, volume)).status_code == 202
    assert (status(client, volume), cluster.images("")) == ("available", {f"volume-{volume}"})


class Died(BaseException):
    """What ends a process at the fake."""


@pytest.mark.parametrize("when", range(2))
def test_a_transfer_that_is_killed_is_finished(
    client: Client, stranger: Client, world: World, cluster: FakeCluster, when: int
) -> None:
    volume = client.volume()["id"]
    made, calls = offer(client, volume), iter(range(100))

    def die() -> None:
        if next(calls) == when:
            raise Died

    pool(world).life = die
    with pytest.raises(Died):
        accept(stranger, made)
    pool(world).life = lambda: None
    assert status(stranger, volume) == "maintenance"
    with world.db.write() as session:  # As if its process were dead.
        session.execute(update(models.Volume).values(lease_owner=None, lease_until=0.0))
    settle(world)
    assert status(stranger, volume) == "available"
    assert pool(world).within(OTHER).images("") == {f"volume-{volume}"}
    assert stranger.delete(f"/v3/volumes/{volume}").status_code == 202


def test_a_move_that_cannot_be_shows_it(
    client: Client, stranger: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    made = offer(client, volume)

    def refuse(*_: Any) -> None:
        raise errors.ImageBusy(volume, "another client")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "move", refuse)
        assert accept(stranger, made).status_code == 202
    assert status(stranger, volume) == "error"
    [message] = stranger.at("3.5").get("/v3/messages").json["messages"]
    assert "another client" in message["user_message"]
    assert stranger.delete(f"/v3/volumes/{volume}").status_code == 202
    assert cluster.images("") == set()


# -- other ways in and out


def test_images_are_taken_over_where_they_are(admin: Client, world: World, cluster: FakeCluster) -> None:
    pool(world).create("golden", GIB)
    cluster.create("mine", GIB)
    listed = admin.at("3.8").get("/v3/manageable_volumes/detail?host=testhost@ceph").json["manageable-volumes"]
    assert {one["reference"]["source-name"] for one in listed} == {"golden", f"{PROJECT}/mine"}
    for name, place in (("golden", pool(world)), (f"{PROJECT}/mine", cluster)):
        body = {"volume": {"host": HOST, "ref": {"source-name": name}}}
        made = admin.post("/v3/os-volume-manage", body).json["volume"]["id"]
        assert status(admin, made) == "available"
        assert place.images("") == {f"volume-{made}"}
        assert admin.post("/v3/os-volume-manage", body).status_code == 400
        called = name.rpartition("/")[0] + "/" * ("/" in name) + f"volume-{made}"
        for again in (called, f"/{called}"):
            body["volume"]["ref"] = {"source-name": again}
            assert admin.post("/v3/os-volume-manage", body).status_code == 400
        taken = snapshot(admin, made)
        found = admin.at("3.8").get("/v3/manageable_snapshots/detail?host=testhost@ceph").json["manageable-snapshots"]
        [one] = [one for one in found if one["reference"]["source-name"] == f"snapshot-{taken}"]
        assert one["source_reference"]["source-name"] == called
    listed = admin.at("3.8").get("/v3/manageable_volumes/detail?host=testhost@ceph").json["manageable-volumes"]
    assert {one["reason_not_safe"] for one in listed} == {"already managed"}
    unknown = {"volume": {"host": HOST, "ref": {"source-name": f"{OTHER}/no-such"}}}
    assert admin.post("/v3/os-volume-manage", unknown).status_code == 400


@pytest.mark.parametrize("conf", [TWO], indirect=True)
def test_a_move_to_another_pool_is_to_the_projects_place_there(client: Client, admin: Client, world: World) -> None:
    volume = client.at("3.13").volume()["id"]
    places = {"fast": ("nvme", PROJECT), "slow": ("disks", ""), "ceph": ("volumes", PROJECT)}
    for name in ("fast", "slow", "ceph"):
        body = {"os-migrate_volume": {"host": f"testhost@{name}#{name}"}}
        answer = admin.post(f"/v3/volumes/{volume}/action", body)
        assert answer.status_code == 202, answer.text
        assert status(client, volume) == "available"
        there = cluster_of(world, name)
        assert (there.pool, there.namespace) == places[name]
        assert there.images("") == {f"volume-{volume}"}
    assert list(audit.audit(world)) == []


@pytest.mark.parametrize("conf", [CACHE], indirect=True)
def test_images_that_are_kept_are_everybodys(
    client: Client, stranger: Client, glance: FakeGlance, world: World, cluster: FakeCluster
) -> None:
    disk = b"\xeb" + b"disk" * 100
    source = glance.create(disk, visibility="public")
    first = client.volume(imageRef=source)["id"]
    [entry] = pool(world).images("")
    golden = pool(world).info(entry).id
    assert golden not in pool(world).parents  # Nothing of the first one's project is needed to read it.
    assert pool(world).data[golden].encode("latin-1") == disk
    second = stranger.volume(imageRef=source)["id"]
    theirs = pool(world).within(OTHER)
    assert theirs.parents[image(theirs, second)] == golden
    assert image(cluster, first) != golden
    with world.db.read() as session:
        rows = {row.id: (row.namespace, row.clone_depth) for row in session.scalars(select(models.Volume))}
    assert rows == {entry.removeprefix("volume-"): ("", 0), first: (PROJECT, 0), second: (OTHER, 1)}


def test_a_moment_of_several_namespaces_is_not_promised(client: Client, admin: Client, world: World) -> None:
    specs = {"consistent_group_snapshot_enabled": "<is> True"}
    admin = admin.at("3.13")
    kind = admin.post("/v3/group_types", {"group_type": {"name": "held", "group_specs": specs}}).json["group_type"][
        "id"
    ]
    types = [one["id"] for one in client.get("/v3/types").json["volume_types"]]
    group = client.at("3.13").post("/v3/groups", {"group": {"group_type": kind, "volume_types": types}}).json["group"]
    members = [client.at("3.13").volume(group_id=group["id"], volume_type=types[0])["id"] for _ in range(2)]
    body = {"group_snapshot": {"group_id": group["id"]}}
    made = client.at("3.14").post("/v3/group_snapshots", body)
    assert made.status_code == 202, made.text
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == members[0]).values(namespace=""))
    refused = client.at("3.14").post("/v3/group_snapshots", body)
    assert (refused.status_code, "namespaces" in refused.text) == (400, True)


# -- for the operator


def test_an_audit_looks_everywhere(client: Client, stranger: Client, world: World, cluster: FakeCluster) -> None:
    missing, lost = client.volume()["id"], client.volume()["id"]
    del cluster.stored[f"volume-{missing}"]
    cluster.move(f"volume-{lost}", cluster.pool, OTHER)
    stray = "volume-99999999-9999-4999-8999-999999999999"
    pool(world).within("nobodys").create(stray, GIB)
    found = {(one.kind, one.subject): one for one in audit.audit(world)}
    assert found.keys() == {
        ("missing-image", f"volume-{missing}"), ("missing-image", f"volume-{lost}"),
        ("extra-image", f"volume-{lost}"), ("extra-image", stray),
    }  # fmt: skip
    assert f"volumes/{OTHER}" in found["missing-image", f"volume-{lost}"].what.replace(f"{HOST}", "volumes")
    assert f"volumes/nobodys/{stray}" in found["extra-image", stray].remedy
    assert f"cinder manage {HOST} nobodys/{stray}" in found["extra-image", stray].remedy


def test_what_is_told_of_a_volume(client: Client, world: World) -> None:
    told = explain.explain(world, client.volume()["id"])
    assert (told["image"]["pool"], told["remarks"]) == (f"volumes/{PROJECT}", [])


def test_a_check_tries_clones_across(world: World, cluster: FakeCluster) -> None:
    assert {one.subject for one in checkup.check(world) if one.level != checkup.OK} == set()
    place = pool(world).within(checkup.NAMESPACE)
    assert (place.stored, place.bin, pool(world).stored, pool(world).bin) == ({}, {}, {}, {})
    place.create(f"{checkup.PREFIX}left", GIB)
    assert [one.subject for one in checkup.check(world) if one.level == checkup.HINT] == ["trial"]


def test_an_interrupted_create_goes_on_where_it_was_accepted(
    ctx: Context, client: Client, world: World, cluster: FakeCluster
) -> None:
    pool(world).stuck = True
    made = client.post("/v3/volumes", {"volume": {"size": 1}}).json["volume"]["id"]
    pool(world).release()
    settle(world)
    assert status(client, made) == "available"
    assert cluster.images("") == {f"volume-{made}"}
    with world.db.read() as session:
        assert holders.strangers(world, session.get_one(models.Volume, made)) == []
    del ctx


@pytest.mark.parametrize("conf", [{"ceph__rbd_namespace_per_project": False}], indirect=True)
def test_without_the_option_there_are_none(client: Client, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    assert cluster.namespace == ""
    assert cluster.images("") == {f"volume-{volume}"}
    assert cluster.spaces == {}


# -- names


def test_names_of_namespaces() -> None:
    for project in (PROJECT, "demo", "0f5c1e22-73ea-4d33-a4a5-7f6b2f0f0a5e", "a_b-C"):
        assert of_project(project) == project
    assert of_project("a.b/c@é") == "a.2Eb.2Fc.40.C3.A9"
    odd = ["", ".", "..", "a.2Eb", "a.b", "a b", "A", "a", "é", "x" * 200, "x" * 201, "é" * 200, "ê" * 200]
    names = [of_project(one) for one in odd]
    assert len(set(names)) == len(odd)
    assert all(0 < len(one) <= 200 and one.isascii() and "/" not in one and "@" not in one for one in names)


def test_the_option_reaches_the_back_end(conf: Any) -> None:
    made = composition.backend(conf, "ceph", FakeCluster())
    assert made.namespace_for(OTHER) == OTHER
