# SPDX-License-Identifier: Apache-2.0
"""What a killed client leaves of an image that it was creating or removing, and that the next try copes with it."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.ceph import children
from cinderlite.ceph.cluster import Cluster
from lab.ceph import Ceph
from lab.process import wait

pytestmark = pytest.mark.real

SIZE = 2**30


@pytest.fixture
def pool(ceph: Ceph) -> Iterator[Any]:
    """The objects of the pool."""
    import rados

    with rados.Rados(conffile=str(ceph.conf)) as connection, connection.open_ioctx(ceph.pool) as objects:
        yield objects


def cut(pool: Any, name: str, image_id: str, *left: str) -> None:
    """Take away what is not among `left` of: id, directory, map, header."""
    import rados

    for part, key in (
        ("header", f"rbd_header.{image_id}"),
        ("map", f"rbd_object_map.{image_id}"),
        ("id", f"rbd_id.{name}"),
    ):
        if part not in left:
            pool.remove_object(key)
    if "directory" not in left:
        with rados.WriteOpCtx() as change:
            pool.remove_omap_keys(change, (f"name_{name}", f"id_{image_id}"))
            pool.operate_write_op(change, "rbd_directory")


LEFT = [("id",), ("id", "directory"), ("id", "directory", "map"), ("id", "directory", "header"), ("directory",),
        ("directory", "map"), ("map",), ("directory", "header", "map")]  # fmt: skip


@pytest.mark.parametrize("left", LEFT, ids="+".join)
def test_an_image_is_created_over_the_rest_of_one(real_cluster: Cluster, pool: Any, left: tuple[str, ...]) -> None:
    name = f"volume-{uuid.uuid4()}"
    real_cluster.create(name, SIZE)
    cut(pool, name, real_cluster.info(name).id, *left)
    real_cluster.create(name, SIZE)
    with real_cluster.opened(name, write=True) as image:
        image.write(0, b"here")
        image.flush()
    with real_cluster.opened(name) as image:
        assert (image.size_bytes, image.read(0, 4), image.chunks()) == (SIZE, b"here", [0])
    image_id = real_cluster.trash(name)
    assert image_id is not None
    assert real_cluster.purge(image_id)
    assert name not in real_cluster.images("volume-")


@pytest.mark.parametrize("left", LEFT, ids="+".join)
def test_the_rest_of_an_image_is_deleted(real_cluster: Cluster, pool: Any, left: tuple[str, ...]) -> None:
    name = f"volume-{uuid.uuid4()}"
    real_cluster.create(name, SIZE)
    cut(pool, name, real_cluster.info(name).id, *left)
    image_id = real_cluster.trash(name)
    if image_id is not None:
        assert real_cluster.purge(image_id)
    assert name not in real_cluster.images("volume-")
    assert name not in [former for _, former in real_cluster.trashed()]


def test_an_image_half_in_the_trash_goes_there_whole(real_cluster: Cluster, pool: Any) -> None:
    import rados

    name = f"volume-{uuid.uuid4()}"
    real_cluster.create(name, SIZE)
    with real_cluster.opened(name, write=True) as image:
        image.write(0, b"data")
        image.flush()
    image_id = real_cluster.trash(name)
    assert image_id is not None
    with rados.WriteOpCtx() as change:  # As it is before the last step: in the trash, and in the directory still.
        keys = f"name_{name}", f"id_{image_id}"
        values = [len(text).to_bytes(4, "little") + text.encode() for text in (image_id, name)]
        pool.set_omap(change, keys, tuple(values))
        pool.operate_write_op(change, "rbd_directory")
    assert name in real_cluster.images("volume-")
    assert real_cluster.trash(name) == image_id
    assert name not in real_cluster.images("volume-")
    assert real_cluster.purge(image_id)
    assert not [one.key for one in pool.list_objects() if image_id in one.key]


def disown(pool: Any, parent_id: str, snap_id: int, child_id: str) -> None:
    """Have a parent not know a clone of a snapshot any more."""
    child = struct.pack("<qI", pool.get_pool_id(), len(child_id)) + child_id.encode() + struct.pack("<I", 0)
    spec = struct.pack("<BBI", 2, 1, len(child)) + child
    pool.execute(f"rbd_header.{parent_id}", "rbd", "child_detach", struct.pack("<Q", snap_id) + spec)


def shares(pool: Any, cluster: Cluster, parent: str, snap: str, name: str) -> None:
    """Make an image of a snapshot as it is when that is cut off before its parent knows of it."""
    import rbd

    cluster.create(parent, SIZE)
    with cluster.opened(parent, write=True) as image:
        image.write(0, b"here")
        image.flush()
    cluster.snapshot(parent, snap)
    cluster.clone(parent, snap, name, SIZE)
    with rbd.Image(pool, parent, read_only=True) as image:
        [snap_id] = [one["id"] for one in image.list_snaps()]
    disown(pool, cluster.info(parent).id, snap_id, cluster.info(name).id)


@pytest.mark.parametrize("verb", ["clone", "copy"])
def test_a_clone_that_its_parent_does_not_know_is_made_anew(real_cluster: Cluster, pool: Any, verb: str) -> None:
    parent, name = (f"volume-{uuid.uuid4()}" for _ in range(2))
    snap = "snapshot-1" if verb == "clone" else f"{name}.clone_snap"
    shares(pool, real_cluster, parent, snap, name)
    if verb == "clone":
        real_cluster.clone(parent, snap, name, SIZE)
        real_cluster.clone(parent, snap, name, SIZE)
        real_cluster.remove_snapshot(parent, snap)
    else:
        real_cluster.copy(parent, name, SIZE)
    for _ in range(2):
        with real_cluster.opened(name) as image:
            assert image.read(0, 4) == b"here"
        before = real_cluster.info(name).id
        real_cluster.copy(parent, name, SIZE)
        assert real_cluster.info(name).id == before


def test_a_copy_that_cannot_be_leaves_its_source_as_it_was(real_cluster: Cluster) -> None:
    parent, name = (f"volume-{uuid.uuid4()}" for _ in range(2))
    real_cluster.create(parent, SIZE)
    with pytest.raises(errors.CephError):
        real_cluster.copy(parent, name, 2**61)
    assert name in real_cluster.images(name)  # It was begun.
    assert real_cluster.snapshots(parent) == []


def test_a_clone_without_its_parent_leaves_the_trash(real_cluster: Cluster, pool: Any) -> None:
    parent, name = (f"volume-{uuid.uuid4()}" for _ in range(2))
    shares(pool, real_cluster, parent, "snapshot-1", name)
    image_id = real_cluster.trash(name)
    assert image_id is not None
    real_cluster.remove_snapshot(parent, "snapshot-1")
    assert real_cluster.purge(image_id, ["snapshot-of-it"])
    assert not [one.key for one in pool.list_objects() if image_id in one.key]
    assert name not in [former for _, former in real_cluster.trashed()]


def test_a_clone_that_is_counted_and_not_there_keeps_no_image(real_cluster: Cluster, pool: Any) -> None:
    """As librbd may leave it where a clone is removed while its parent is on its way to another pool."""
    parent, dead, lives = (f"volume-{uuid.uuid4()}" for _ in range(3))
    real_cluster.create(parent, SIZE)
    real_cluster.snapshot(parent, "snap")
    for child in (dead, lives):
        real_cluster.clone(parent, "snap", child, SIZE)
    cut(pool, dead, real_cluster.info(dead).id)
    real_cluster.remove_snapshot(parent, "snap")
    image_id = real_cluster.trash(parent)
    assert image_id is not None
    with pytest.raises(errors.ImageBusy):
        real_cluster.purge(image_id)
    with real_cluster.opened(lives) as image:
        assert image.read(0, 4) == bytes(4)
    child_id = real_cluster.trash(lives)
    assert child_id is not None
    assert real_cluster.purge(child_id)
    wait(lambda: purged(real_cluster, image_id), timeout=10, what="the parent to go")
    assert parent not in dict(real_cluster.trashed()).values()


def test_the_last_clone_that_is_counted_and_not_there_keeps_no_image(real_cluster: Cluster, pool: Any) -> None:
    parent, dead = f"volume-{uuid.uuid4()}", f"volume-{uuid.uuid4()}"
    real_cluster.create(parent, SIZE)
    real_cluster.snapshot(parent, "snap")
    real_cluster.clone(parent, "snap", dead, SIZE)
    cut(pool, dead, real_cluster.info(dead).id)
    real_cluster.remove_snapshot(parent, "snap")
    image_id = real_cluster.trash(parent)
    assert image_id is not None
    assert real_cluster.purge(image_id)
    assert parent not in dict(real_cluster.trashed()).values()


def test_a_snapshot_that_went_with_no_clone_keeps_no_image(real_cluster: Cluster, pool: Any, ceph: Ceph) -> None:
    """As of somebody who was killed between taking the last clone off its parent and removing what it needed there."""
    parent, clone = f"volume-{uuid.uuid4()}", f"volume-{uuid.uuid4()}"
    real_cluster.create(parent, SIZE)
    real_cluster.snapshot(parent, "snap")
    real_cluster.clone(parent, "snap", clone, SIZE)
    real_cluster.remove_snapshot(parent, "snap")
    image_id = real_cluster.trash(parent)
    assert image_id is not None
    [snap] = json.loads(
        ceph.rbd("snap", "ls", "--all", "--image-id", image_id, "--pool", ceph.pool, "--format", "json")
    )
    [child] = children.of(pool, image_id, snap["id"])
    children.cross_off(pool, image_id, snap["id"], child)
    cut(pool, clone, child.id)
    assert real_cluster.purge(image_id)
    assert parent not in dict(real_cluster.trashed()).values()


def purged(cluster: Cluster, image_id: str) -> bool:
    """Ceph drops what a clone held a moment after the clone."""
    try:
        return cluster.purge(image_id)
    except errors.ImageBusy:
        return False
