# SPDX-License-Identifier: Apache-2.0
"""The bytes of images and plain objects, tried on the fake cluster and on a real one."""

from __future__ import annotations

import uuid

import pytest

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.ceph.data import CHUNK_BYTES

SIZE = 10 * CHUNK_BYTES + 512


@pytest.fixture
def name(cluster: Cluster) -> str:
    made = f"volume-{uuid.uuid4()}"
    cluster.create(made, SIZE)
    return made


def test_write_read_zero(cluster: Cluster, name: str) -> None:
    with cluster.opened(name, write=True) as image:
        assert image.size_bytes == SIZE
        assert image.chunks() == []
        image.write(CHUNK_BYTES - 2, b"abcd")
        image.write(SIZE - 3, b"end")
        image.flush()
        assert image.read(CHUNK_BYTES - 3, 6) == b"\0abcd\0"
        assert image.read(SIZE - 3, 100) == b"end"
        assert image.read(SIZE, 100) == b""
        assert image.chunks() == [0, 1, 10]
        image.zero(CHUNK_BYTES, CHUNK_BYTES)
        image.zero(10 * CHUNK_BYTES, CHUNK_BYTES)
        assert image.read(CHUNK_BYTES - 3, 6) == b"\0ab\0\0\0"
        assert image.read(SIZE - 3, 3) == bytes(3)
    with cluster.opened(name) as image:
        assert image.read(CHUNK_BYTES - 2, 2) == b"ab"


def test_what_an_image_begins_with(cluster: Cluster, name: str) -> None:
    for word in (b"first" * 1000, b"again" * 1000):
        cluster.write_head(name, word)
        with cluster.opened(name) as image:
            assert image.read(0, 5001) == word + b"\0"
            assert image.chunks() == [0]
    with pytest.raises(errors.ImageNotFound):
        cluster.write_head("none", b"x")


def test_what_changed_since_a_snapshot(cluster: Cluster, name: str) -> None:
    with cluster.opened(name, write=True) as image:
        image.write(0, b"one")
        image.write(5 * CHUNK_BYTES, b"five")
    cluster.snapshot(name, "first")
    with cluster.opened(name, write=True) as image:
        image.write(2 * CHUNK_BYTES, b"two")
        image.zero(5 * CHUNK_BYTES, CHUNK_BYTES)
    cluster.snapshot(name, "second")
    with cluster.opened(name, write=True) as image:
        image.write(0, b"ONE")
        assert image.chunks("second") == [0]
        assert image.chunks("first") == [0, 2, 5]
        assert image.chunks("third") is None
    with cluster.opened(name, "second") as image:
        assert image.read(0, 3) == b"one"
        assert image.chunks("first") == [2, 5]
        assert image.chunks("second") is None
    with cluster.opened(name, "first") as image:
        assert image.read(5 * CHUNK_BYTES, 4) == b"five"
        assert image.chunks("second") is None, "a newer snapshot says nothing"


def test_smaller_and_bigger(cluster: Cluster, name: str) -> None:
    with cluster.opened(name, write=True) as image:
        image.write(0, b"head")
        image.write(8 * CHUNK_BYTES, b"tail")
        image.resize(4 * CHUNK_BYTES)
        assert image.size_bytes == 4 * CHUNK_BYTES
        image.resize(9 * CHUNK_BYTES)
        assert image.read(0, 4) == b"head"
        assert image.read(8 * CHUNK_BYTES, 4) == bytes(4)


def test_notes(cluster: Cluster, name: str) -> None:
    with cluster.opened(name, write=True) as image:
        assert image.note("head") is None
        image.set_note("head", "one")
    with cluster.opened(name) as image:
        assert image.note("head") == "one"


@pytest.mark.parametrize("snap", [None, "nothing"])
def test_what_is_not_there_cannot_be_opened(cluster: Cluster, name: str, snap: str | None) -> None:
    with pytest.raises(errors.ImageNotFound), cluster.opened(name if snap else "nothing", snap):
        pass


@pytest.mark.parametrize("length", [0, 1, 20 * 2**20])
def test_objects(cluster: Cluster, length: int) -> None:
    name = f"cinderlite.{uuid.uuid4()}"
    assert cluster.get_object(name) == b""
    cluster.put_object(name, b"x" * (length + 5))
    cluster.put_object(name, b"y" * length)
    assert cluster.get_object(name) == b"y" * length
    cluster.drop_object(name)
    cluster.drop_object(name)
    assert cluster.get_object(name) == b""


def test_entries(cluster: Cluster) -> None:
    name = f"cinderlite.{uuid.uuid4()}"
    assert cluster.entries(name) == {}
    cluster.put_entries(name, {}, ["a"])
    many = {f"volume/{number}": bytes([number % 256]) * (number % 100) for number in range(2500)}
    assert not cluster.has_entry(name, "a")
    cluster.put_entries(name, many)
    assert all(cluster.has_entry(name, key) for key in many)
    assert not cluster.has_entry(name, "not there")
    assert cluster.entries(name) == many
    cluster.put_entries(name, {"ü": b"\0", "volume/1": b"other"}, ["volume/2", "not there"])
    assert cluster.entries(name) == {
        **{key: many[key] for key in many.keys() - {"volume/2"}},
        "ü": b"\0",
        "volume/1": b"other",
    }
    cluster.put_entries(name, {}, [*many, "ü"])
    assert cluster.entries(name) == {}
