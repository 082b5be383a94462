# SPDX-License-Identifier: Apache-2.0
"""What a killed client leaves of an image that it was creating or removing, and that the next try copes with it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cinderlite.ceph.cluster import Cluster
from lab.ceph import Ceph

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
