# SPDX-License-Identifier: Apache-2.0
"""Namespaces of a pool, tried on the fake cluster and on a real one; and what keys of one namespace open."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from fakes_cluster import FakeCluster
from lab.ceph import Ceph
from lab.process import PATIENCE

GIB = 2**30
MIB = 2**20
Space = Callable[[], Cluster]


@pytest.fixture
def name() -> str:
    return f"volume-{uuid.uuid4()}"


@pytest.fixture
def space(cluster: Cluster) -> Iterator[Space]:
    """Makes up a namespace that nobody has; what is in it goes with the test."""
    made: list[Cluster] = []

    def space() -> Cluster:
        made.append(cluster.within(f"project-{uuid.uuid4().hex}"))
        return made[-1]

    yield space
    for _ in range(3):  # Clones before what they are of.
        for one in made:
            empty(one)


def empty(cluster: Cluster) -> None:
    for name in cluster.images(""):
        for snap in cluster.snapshots(name):
            cluster.remove_snapshot(name, snap.name)
        cluster.trash(name)
    for image_id, _ in cluster.trashed():
        gone(cluster, image_id)


def gone(cluster: Cluster, image_id: str) -> bool:
    try:
        return cluster.purge(image_id)
    except errors.ImageBusy:
        return False


def write(cluster: Cluster, name: str, text: str) -> None:
    with cluster.opened(name, write=True) as image:
        image.write(0, text.encode().ljust(16, b"\0"))
        image.flush()


def read(cluster: Cluster, name: str) -> str:
    with cluster.opened(name) as image:
        return image.read(0, 16).rstrip(b"\0").decode()


def test_an_image_is_in_its_namespace_only(cluster: Cluster, space: Space, name: str) -> None:
    mine, other = space(), space()
    mine.create(name, 16 * MIB)
    assert mine.images("") == {name}
    assert name not in cluster.images("") | other.images("")
    with pytest.raises(errors.ImageNotFound):
        cluster.info(name)
    assert mine.namespace in cluster.namespaces()
    assert mine.place == f"{cluster.pool}/{mine.namespace}"
    assert mine.within("").place == cluster.place == cluster.pool
    mine.snapshot(name, "first")
    assert [one.name for one in mine.snapshots(name)] == ["first"]
    assert mine.portrait(name).size_bytes == mine.outline(name).size_bytes == 16 * MIB
    mine.remove_snapshot(name, "first")


def test_each_namespace_has_its_trash(cluster: Cluster, space: Space, name: str) -> None:
    mine, other = space(), space()
    mine.create(name, 16 * MIB)
    image_id = mine.trash(name)
    assert image_id is not None
    assert mine.trashed() == [(image_id, name)]
    assert image_id not in dict(cluster.trashed())
    assert other.trash(name) is None
    mine.restore(image_id, name)
    assert mine.trash(name) == image_id
    assert mine.purge(image_id)
    assert mine.trashed() == []


def test_clones_and_copies_from_another_namespace(cluster: Cluster, space: Space, name: str) -> None:
    mine, other, golden = space(), space(), f"golden-{uuid.uuid4()}"
    cluster.create(golden, 16 * MIB)
    try:
        write(cluster, golden, "golden")
        mine.copy(golden, name, 32 * MIB, source=cluster)
        assert cluster.snapshots(golden) == []
        assert read(mine, name) == "golden"
        assert mine.info(name).size_bytes == 32 * MIB
        write(mine, name, "mine")
        mine.snapshot(name, "first")
        other.clone(name, "first", name, 32 * MIB, source=mine)
        other.clone(name, "first", name, 32 * MIB, source=mine)  # Again, as after a death.
        assert read(other, name) == "mine"
        assert other.depth(name, 5) == 2
        assert [(one.namespace, one.image) for one in other.portrait(name).parents] == [
            (mine.namespace, name),
            ("", golden),
        ]
        children = mine.portrait(name).children
        assert children is not None
        assert [(one.namespace, one.image) for one in children] == [(other.namespace, name)]
        with pytest.raises(errors.ImageNotFound):
            other.clone(name, "no such", f"{name}-2", 32 * MIB, source=mine)
    finally:
        for one in (other, mine):
            empty(one)
        image_id = cluster.trash(golden)
        assert image_id is not None
        deadline = time.monotonic() + PATIENCE * 10
        while not gone(cluster, image_id):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_moves_to_another_namespace_and_back(cluster: Cluster, space: Space, name: str) -> None:
    giver, taker = space(), space()
    giver.create(name, 16 * MIB)
    write(giver, name, "then")
    giver.snapshot(name, "first")
    write(giver, name, "now")
    giver.clone(name, "first", f"{name}-clone", 16 * MIB)
    for source, target in ((giver, taker), (giver, taker), (taker, cluster), (cluster, taker)):
        source.move(name, cluster.pool, target.namespace)
        assert name not in source.images("")
        assert read(target, name) == "now"
        assert [one.name for one in target.snapshots(name)] == ["first"]
        assert read(giver, f"{name}-clone") == "then"
        assert source.trashed() == [] or source is cluster


def test_a_group_snapshot_within_a_namespace(space: Space, name: str) -> None:
    mine, group = space(), f"group_snapshot-{uuid.uuid4()}"
    names = [f"{name}-{number}" for number in range(2)]
    for one in names:
        mine.create(one, 16 * MIB)
    mine.group_snapshot(group, names)
    with mine.opened(names[0], group) as held:
        assert held.size_bytes == 16 * MIB
    mine.remove_group_snapshot(group, names)


def test_a_pools_figures_count_all_namespaces(
    cluster: Cluster, space: Space, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cinderlite.ceph.cluster.CAPACITY_SECONDS", 0.0)
    deadline = time.monotonic() + 30
    before = None
    while before is None:
        try:
            before = cluster.capacity().provisioned_bytes
        except errors.CephUnavailable:  # The manager has no figures yet.
            assert time.monotonic() < deadline
            time.sleep(0.5)
    space().create(name, GIB)
    assert cluster.capacity().provisioned_bytes == before + GIB


@pytest.mark.real
def test_a_namespace_that_was_removed_is_made_again(real_cluster: Cluster, ceph: Ceph, name: str) -> None:
    mine = real_cluster.within(f"project-{uuid.uuid4().hex}")
    mine.create(name, 16 * MIB)
    empty(mine)
    ceph.rbd("namespace", "remove", mine.place)
    mine.create(name, 16 * MIB)
    empty(mine)


@pytest.mark.real
def test_a_clone_makes_a_namespace_again_that_was_removed(real_cluster: Cluster, ceph: Ceph, name: str) -> None:
    """librbd says of its place what it says of a snapshot that is not there."""
    mine = real_cluster.within(f"project-{uuid.uuid4().hex}")
    mine.create(name, 16 * MIB)
    empty(mine)
    ceph.rbd("namespace", "remove", mine.place)
    real_cluster.create(name, 16 * MIB)
    real_cluster.snapshot(name, "snap")
    mine.clone(name, "snap", f"{name}-clone", 16 * MIB, source=real_cluster)
    empty(mine)
    real_cluster.remove_snapshot(name, "snap")
    empty(real_cluster)


@pytest.mark.real
def test_what_a_key_of_one_namespace_opens(real_cluster: Cluster, ceph: Ceph, name: str) -> None:
    """The rights of a hypervisor that has one project's guests only, as doc/namespaces.md says them."""
    mine, other, golden = (
        real_cluster.within("project-a"),
        real_cluster.within("project-b"),
        f"golden-{uuid.uuid4()}",
    )
    real_cluster.create(golden, 16 * MIB)
    write(real_cluster, golden, "golden")
    mine.copy(golden, f"{name}-clone", 16 * MIB, source=real_cluster)
    mine.create(name, 16 * MIB)
    other.create(name, 16 * MIB)
    own = f"profile rbd pool={ceph.pool} namespace=project-a"
    golden_too = f'{own}, profile rbd-read-only pool={ceph.pool} namespace=""'

    def opened_by(user: str, rights: str) -> dict[str, bool]:
        keyring = f"{ceph.directory}/client.{user}.keyring"
        ceph.command("auth", "get-or-create", f"client.{user}", "mon", "profile rbd", "osd", rights, "-o", keyring)
        key = Cluster(
            pool=ceph.pool,
            conffile=str(ceph.conf),
            user=user,
            connect_timeout=5,
            mon_timeout=5,
            osd_timeout=5,
            call_timeout=10.0,
            threads=2,
        )
        images = {
            "own": ("project-a", name, True),
            "own clone": ("project-a", f"{name}-clone", True),
            "other's": ("project-b", name, False),
            "golden": ("", golden, False),
            "golden, to write": ("", golden, True),
        }
        try:
            return {
                what: opens(key.within(where), image, write=write) for what, (where, image, write) in images.items()
            }
        finally:
            key.close()

    try:
        assert opened_by("own", own) == {
            "own": True,
            "own clone": False,
            "other's": False,
            "golden": False,
            "golden, to write": False,
        }
        assert opened_by("goldentoo", golden_too) == {
            "own": True,
            "own clone": True,
            "other's": False,
            "golden": True,
            "golden, to write": False,
        }
    finally:
        for one in (mine, other):
            empty(one)
        image_id = real_cluster.trash(golden)
        assert image_id is not None
        deadline = time.monotonic() + PATIENCE * 10
        while not gone(real_cluster, image_id) and time.monotonic() < deadline:
            time.sleep(0.2)


def opens(cluster: Cluster, name: str, *, write: bool) -> bool:
    try:
        with cluster.opened(name, write=write) as image:
            if write:
                image.write(0, b"mine")
                image.flush()
            return bool(image.read(0, 4))
    except errors.CephError:
        return False


def test_the_fake_keeps_what_is_the_pools() -> None:
    """Tests set it on the pool and mean all of it."""
    fake = FakeCluster()
    mine = fake.within("project")
    fake.down = True
    with pytest.raises(errors.CephUnavailable):
        mine.create("x", 1)
    fake.down, fake.stuck = False, True
    with pytest.raises(errors.CephTimeout):
        mine.create("x", 1)
    fake.release()
    assert mine.images("") == {"x"}
