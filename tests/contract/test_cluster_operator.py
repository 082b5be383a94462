# SPDX-License-Identifier: Apache-2.0
"""What a cluster tells an operator: images from all sides, and whether pool and user are as they should be."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.ceph.look import GROUP, TRASH, USER
from lab.ceph import Ceph
from lab.process import wait

GIB = 2**30
MIB = 2**20
real = pytest.mark.real
Connect = Callable[..., Cluster]


@pytest.fixture
def name() -> str:
    return f"volume-{uuid.uuid4()}"


@pytest.fixture
def connect(ceph: Ceph, real_cluster: Cluster) -> Iterator[Connect]:
    """Makes further connections to the same Ceph."""
    made: list[Cluster] = []

    def connect(**otherwise: Any) -> Cluster:
        settings: dict[str, Any] = {
            "pool": ceph.pool, "conffile": str(ceph.conf), "user": ceph.user, "connect_timeout": 5, "mon_timeout": 5,
            "osd_timeout": 5, "call_timeout": 10.0, "threads": 2,
        }  # fmt: skip
        made.append(Cluster(**settings | otherwise))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def gone(cluster: Cluster, *names: str) -> None:
    """Remove images, clones first."""
    for name in names:
        image_id = cluster.trash(name)
        assert image_id is not None
        purged(cluster, image_id)


def purged(cluster: Cluster, image_id: str) -> None:
    """Have a trashed image removed; Ceph drops what a clone held a moment after the clone."""

    def purge() -> bool:
        try:
            return cluster.purge(image_id, ["first", "second"])
        except errors.ImageBusy:
            return False

    wait(purge, timeout=10, what="the image to be gone")


def test_an_image_from_all_sides(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    empty = cluster.portrait(name)
    assert (empty.id, empty.size_bytes, empty.used_bytes) == (cluster.info(name).id, GIB, 0)
    assert {"layering", "exclusive-lock", "fast-diff"} <= set(empty.features)
    assert (empty.parents, empty.children, empty.snapshots, empty.watchers, empty.lock_owners) == ([], [], [], [], [])
    with cluster.opened(name, write=True) as image:
        image.write(9 * MIB, b"x")
    cluster.snapshot(name, "first")
    cluster.grow(name, 2 * GIB)
    cluster.snapshot(name, "second")
    full = cluster.portrait(name)
    assert (full.size_bytes, full.used_bytes) == (2 * GIB, 4 * MIB)
    assert [(one.name, one.kind, one.size_bytes, one.origin) for one in full.snapshots] == [
        ("first", USER, GIB, None),
        ("second", USER, 2 * GIB, None),
    ]
    outline = cluster.outline(name)
    assert (outline.id, outline.size_bytes, outline.snapshots) == (full.id, full.size_bytes, full.snapshots)
    gone(cluster, name)


def test_parents_and_children(cluster: Cluster, name: str) -> None:
    child, grandchild = f"{name}-child", f"{name}-grandchild"
    cluster.create(name, GIB)
    with cluster.opened(name, write=True) as image:
        image.write(0, b"x")
    cluster.snapshot(name, "first")
    cluster.clone(name, "first", child, GIB)
    cluster.snapshot(child, "second")
    cluster.clone(child, "second", grandchild, GIB)
    above = cluster.portrait(grandchild)
    assert [(one.pool, one.image, one.trashed) for one in above.parents] == [
        (cluster.pool, child, False),
        (cluster.pool, name, False),
    ]
    assert above.used_bytes == 0  # Its parents' data are not its own.
    [found] = cluster.portrait(name).children or []
    assert (found.pool, found.image, found.id) == (cluster.pool, child, cluster.info(child).id)
    # A parent in the trash is still one, and can be looked at by its id.
    image_id = cluster.trash(child)
    assert image_id is not None
    assert [one.trashed for one in cluster.portrait(grandchild).parents] == [True, False]
    assert [one.image for one in cluster.portrait(child, image_id).children or []] == [grandchild]
    with pytest.raises(errors.ImageNotFound):
        cluster.portrait(child)
    gone(cluster, grandchild)
    assert cluster.purge(image_id, ["second"])
    gone(cluster, name)


def test_a_groups_snapshot_is_told_by_its_name(cluster: Cluster, name: str) -> None:
    group = f"group_snapshot-{uuid.uuid4()}"
    cluster.create(name, GIB)
    cluster.group_snapshot(group, [name])
    [found] = cluster.outline(name).snapshots
    assert (found.kind, found.origin) == (GROUP, group)
    cluster.remove_group_snapshot(group, [name])
    gone(cluster, name)


def test_an_image_without_an_object_map_is_not_measured(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    cluster.share(name)
    found = cluster.portrait(name)
    assert found.used_bytes is None
    assert not {"exclusive-lock", "fast-diff"} & set(found.features)
    gone(cluster, name)


def test_an_image_that_is_not_there(cluster: Cluster, name: str) -> None:
    for look in (cluster.outline, cluster.portrait, cluster.created):
        with pytest.raises(errors.ImageNotFound):
            look(name)
    with pytest.raises(errors.ImageNotFound):
        cluster.portrait(name, "0123456789ab")
    assert cluster.migration(name) is None


def test_when_an_image_was_made(cluster: Cluster, name: str) -> None:
    before = time.time()
    cluster.create(name, GIB)
    # Both run on one machine, whose coarse clock may lag behind a little.
    assert before - 0.1 <= cluster.created(name) <= time.time() + 0.1
    gone(cluster, name)


def test_the_cluster_is_as_it_should_be(cluster: Cluster) -> None:
    facts = cluster.examine({"second"})
    assert facts.release >= "pacific"
    assert (facts.initialised, facts.application, facts.erasure_coded, facts.full) == (True, True, False, [])
    assert (facts.may_blocklist, facts.reads_keys) == (True, False)
    assert "second" not in facts.writable_elsewhere  # Other tests have made further pools of the service's.
    assert facts.clone_format is None


# -- what only Ceph itself can show


@real
def test_who_holds_an_image(connect: Connect, real_cluster: Cluster, name: str) -> None:
    other = connect()
    real_cluster.create(name, GIB)
    with other.opened(name, write=True) as image:
        image.write(0, b"x")
        found = real_cluster.portrait(name)
        assert found.watchers == real_cluster.info(name).watchers
        assert found.lock_owners == found.watchers
        assert len(found.watchers) == 1
    assert real_cluster.portrait(name).lock_owners == []
    gone(real_cluster, name)


@real
def test_a_removed_snapshot_that_a_clone_needs(real_cluster: Cluster, name: str) -> None:
    child = f"{name}-child"
    real_cluster.create(name, GIB)
    real_cluster.snapshot(name, "first")
    real_cluster.clone(name, "first", child, GIB)
    real_cluster.remove_snapshot(name, "first")
    [found] = real_cluster.outline(name).snapshots
    assert (found.kind, found.origin) == (TRASH, "first")
    [parent] = real_cluster.portrait(child).parents
    assert (parent.image, parent.snap) == (name, "first")
    gone(real_cluster, child, name)


@real
def test_a_move_is_told_and_its_target_can_be_looked_at(
    connect: Connect, real_cluster: Cluster, ceph: Ceph, name: str
) -> None:
    second = connect(pool="second")
    real_cluster.create(name, GIB)
    ceph.rbd("migration", "prepare", f"{ceph.pool}/{name}", f"second/{name}")
    assert real_cluster.migration(name) == "prepared"
    assert "migrating" in second.portrait(name).features
    ceph.rbd("migration", "execute", f"second/{name}")
    assert real_cluster.migration(name) == "executed"
    ceph.rbd("migration", "commit", f"second/{name}")
    assert real_cluster.migration(name) is None
    assert second.outline(name).size_bytes == GIB
    gone(second, name)


@real
def test_rights_that_are_too_many_or_too_few(connect: Connect, ceph: Ceph) -> None:
    facts = connect(user="admin").examine(set())
    assert facts.reads_keys
    assert "second" in facts.writable_elsewhere
    mine = f"allow rwx pool={ceph.pool}, allow r pool=second"
    ceph.command(
        "auth",
        "get-or-create",
        "client.raw",
        "mon",
        "allow r",
        "osd",
        mine,
        "-o",
        f"{ceph.directory}/client.raw.keyring",
    )
    facts = connect(user="raw").examine(set())
    assert (facts.may_blocklist, facts.reads_keys, facts.writable_elsewhere) == (False, False, [])
    assert "second" in connect().examine(set()).writable_elsewhere
    # The trial of its rights changed nothing.
    assert "nobody" not in ceph.command("osd", "blocklist", "ls")


@real
def test_a_clone_where_our_user_may_not_look(connect: Connect, ceph: Ceph, name: str) -> None:
    ceph.command("osd", "pool", "create", "hidden", "1")
    try:
        ceph.rbd("pool", "init", "hidden")
        cluster = connect()
        cluster.create(name, GIB)
        cluster.snapshot(name, "first")
        ceph.rbd("clone", "--rbd-default-clone-format", "2", f"{ceph.pool}/{name}@first", f"hidden/{name}")
        assert cluster.portrait(name).children is None
        ceph.rbd("rm", "--no-progress", f"hidden/{name}")
        gone(cluster, name)
    finally:
        ceph.command("osd", "pool", "rm", "hidden", "hidden", "--yes-i-really-really-mean-it")


@real
def test_a_pool_that_is_not_as_it_should_be(connect: Connect, ceph: Ceph) -> None:
    ceph.command("osd", "pool", "create", "bare", "1")
    try:
        facts = connect(pool="bare", user="admin").examine(set())
        assert (facts.initialised, facts.application) == (False, False)
        ceph.rbd("pool", "init", "bare")
        ceph.rbd("config", "pool", "set", "bare", "rbd_default_clone_format", "1")
        facts = connect(pool="bare", user="admin").examine(set())
        assert (facts.initialised, facts.application, facts.clone_format) == (True, True, "1")
    finally:
        ceph.command("osd", "pool", "rm", "bare", "bare", "--yes-i-really-really-mean-it")
