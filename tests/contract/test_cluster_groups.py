# SPDX-License-Identifier: Apache-2.0
"""Snapshots of several images at one moment, tried on the fake cluster and on a real one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.ceph.data import CHUNK_BYTES
from lab.process import wait

SIZE = 16 * CHUNK_BYTES


@pytest.fixture
def group() -> str:
    return f"group-snapshot-{uuid.uuid4()}"


@pytest.fixture
def names(cluster: Cluster) -> list[str]:
    """Two images that hold their own number."""
    made = [f"volume-{uuid.uuid4()}" for _ in range(2)]
    for number, name in enumerate(made):
        cluster.create(name, SIZE)
        write(cluster, name, 0, str(number).encode())
    return made


def write(cluster: Cluster, name: str, chunk: int, data: bytes) -> None:
    with cluster.opened(name, write=True) as image:
        image.write(chunk * CHUNK_BYTES, data)


def first_byte(cluster: Cluster, name: str, snap: str | None = None) -> bytes:
    with cluster.opened(name, snap) as image:
        return image.read(0, 1)


def test_it_holds_the_moment_of_each_image(cluster: Cluster, names: list[str], group: str) -> None:
    for _ in range(2):
        cluster.group_snapshot(group, names)
    for name in names:
        write(cluster, name, 0, b"x")
        cluster.grow(name, 2 * SIZE)
    cluster.group_snapshot(group, names)
    assert [first_byte(cluster, name, group) for name in names] == [b"0", b"1"]
    with cluster.opened(names[0], group) as image:
        assert image.size_bytes == SIZE
        assert image.chunks() == [0]


def test_it_is_none_of_the_users_snapshots(cluster: Cluster, names: list[str], group: str) -> None:
    cluster.group_snapshot(group, names)
    name = names[0]
    assert cluster.snapshots(name) == []
    for refused in (
        lambda: cluster.clone(name, group, f"{name}-clone", SIZE),
        lambda: cluster.roll_back(name, group),
        lambda: first_byte(cluster, name, "another"),
    ):
        with pytest.raises(errors.ImageNotFound):
            refused()


def test_it_tells_what_was_written_since_a_users_snapshot(cluster: Cluster, names: list[str], group: str) -> None:
    for name in names:
        cluster.snapshot(name, "snapshot-before")
    write(cluster, names[1], 3, b"new")
    cluster.group_snapshot(group, names)
    write(cluster, names[0], 5, b"later")
    cluster.snapshot(names[0], "snapshot-after")
    found = []
    for name in names:
        with cluster.opened(name, group) as image:
            found.append(image.chunks(since="snapshot-before"))
            assert image.chunks(since="snapshot-after") is None
    assert found == [[], [3]]


def test_images_are_in_any_number_of_them(cluster: Cluster, names: list[str], group: str) -> None:
    cluster.group_snapshot(group, names)
    write(cluster, names[0], 0, b"x")
    cluster.group_snapshot(f"{group}-2", names)
    assert [first_byte(cluster, names[0], one) for one in (group, f"{group}-2")] == [b"0", b"x"]
    cluster.remove_group_snapshot(group, names)
    assert first_byte(cluster, names[0], f"{group}-2") == b"x"


def test_it_is_removed_with_all_that_it_held(cluster: Cluster, names: list[str], group: str) -> None:
    cluster.group_snapshot(group, names)
    image_id = cluster.trash(names[0])
    assert image_id is not None
    with pytest.raises(errors.ImageBusy):
        cluster.purge(image_id)
    for _ in range(2):
        cluster.remove_group_snapshot(group, names)
    with pytest.raises(errors.ImageNotFound):
        first_byte(cluster, names[1], group)
    assert cluster.purge(image_id)
    other = cluster.trash(names[1])
    assert other is not None
    assert cluster.purge(other)
    cluster.remove_group_snapshot(f"{group}-that-is-not-there", names)


def test_without_one_of_its_images_there_is_none(cluster: Cluster, names: list[str], group: str) -> None:
    with pytest.raises(errors.ImageNotFound):
        cluster.group_snapshot(group, [*names, "volume-that-is-not-there"])
    with pytest.raises(errors.ImageNotFound):
        first_byte(cluster, names[0], group)
    cluster.remove_group_snapshot(group, names)
    for name in names:
        image_id = cluster.trash(name)
        assert image_id is not None
        assert cluster.purge(image_id)


# -- on a real one only: writers, and what a killed process leaves


@pytest.mark.real
def test_no_writer_gets_ahead_of_another(ceph: Any, real_cluster: Cluster, group: str) -> None:
    """A writer counts in two images in turn: at any moment the first is as far as the second, or one further."""
    import rados
    import rbd

    names = [f"volume-{uuid.uuid4()}" for _ in range(2)]
    for name in names:
        real_cluster.create(name, SIZE)
    stop, failed = threading.Event(), []
    number = 0

    def count() -> None:
        nonlocal number
        handle = rados.Rados(conffile=str(ceph.conf), name=f"client.{ceph.user}")
        handle.connect()
        ioctx = handle.open_ioctx(ceph.pool)
        with rbd.Image(ioctx, names[0]) as first, rbd.Image(ioctx, names[1]) as second:
            while not stop.is_set():
                number += 1
                for image in (first, second):
                    try:
                        image.write(number.to_bytes(8, "big"), 0)
                        image.flush()
                    except rbd.Error as error:
                        failed.append(error)
        ioctx.close()
        handle.shutdown()

    writer = threading.Thread(target=count)
    writer.start()
    try:
        for turn in range(5):
            before = number
            wait(lambda before=before: number > before + 1, timeout=20, what="both to be written")  # type: ignore[misc]
            real_cluster.group_snapshot(f"{group}-{turn}", names)
    finally:
        stop.set()
        writer.join(30)
    assert failed == []
    moments = []
    for turn in range(5):
        held = []
        for name in names:
            with real_cluster.opened(name, f"{group}-{turn}") as image:
                held.append(int.from_bytes(image.read(0, 8), "big"))
        moments.append(held)
        real_cluster.remove_group_snapshot(f"{group}-{turn}", names)
    assert all(first - second in (0, 1) for first, second in moments), moments
    assert moments[0][0] > 0
    assert len({first for first, _ in moments}) == 5


@pytest.mark.real
def test_an_image_of_another_group_is_left_there(ceph: Any, real_cluster: Cluster, group: str) -> None:
    names = [f"volume-{uuid.uuid4()}" for _ in range(2)]
    for name in names:
        real_cluster.create(name, SIZE)
    ceph.rbd("group", "create", f"{ceph.pool}/{group}-other")
    ceph.rbd("group", "image", "add", f"{ceph.pool}/{group}-other", f"{ceph.pool}/{names[1]}")
    with pytest.raises(errors.ImageBusy):
        real_cluster.group_snapshot(group, names)
    # The first image is free again.
    ceph.rbd("group", "image", "add", f"{ceph.pool}/{group}-other", f"{ceph.pool}/{names[0]}")
    real_cluster.remove_group_snapshot(group, names)
    assert names[1] in ceph.rbd("group", "image", "ls", f"{ceph.pool}/{group}-other")
    ceph.rbd("group", "rm", f"{ceph.pool}/{group}-other")
    real_cluster.group_snapshot(group, names)
    real_cluster.remove_group_snapshot(group, names)


_TAKES = """
import sys
import rados, rbd
conf, user, pool, group, *names = sys.argv[1:]
handle = rados.Rados(conffile=conf, name=f"client.{user}")
handle.connect()
ioctx = handle.open_ioctx(pool)
rbd.RBD().group_create(ioctx, group)
held = rbd.Group(ioctx, group)
for name in names:
    held.add_image(ioctx, name)
print("now", flush=True)
held.create_snap(group)
"""


@pytest.mark.real
@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_what_a_killed_process_began_is_done_again_or_removed(
    ceph: Any, real_cluster: Cluster, group: str, delay: float
) -> None:
    names = [f"volume-{uuid.uuid4()}" for _ in range(3)]
    for name in names:
        real_cluster.create(name, SIZE)

    def come_to_an_end(end: Callable[[str, list[str]], object]) -> None:
        try:
            end(group, names)
        except errors.Unavailable:  # Of one that was killed while it opened an image Ceph may count the watch for ever.
            for name in names:
                real_cluster.look_anew(name)
            wait(lambda: not any(map(ceph.watchers, names)), timeout=60, what="the dead one's watches to end")
            end(group, names)

    for end in (real_cluster.group_snapshot, real_cluster.remove_group_snapshot):
        arguments = [str(ceph.conf), ceph.user, ceph.pool, group, *names]
        process = subprocess.Popen([sys.executable, "-c", _TAKES, *arguments], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        come_to_an_end(end)
        if end == real_cluster.group_snapshot:
            assert [first_byte(real_cluster, name, group) for name in names] == [b"\0"] * 3
            real_cluster.remove_group_snapshot(group, names)
    for name in names:
        assert ceph.rbd("snap", "ls", "--all", f"{ceph.pool}/{name}") == ""


@pytest.mark.real
def test_one_whose_removal_was_cut_off_is_taken_anew(ceph: Any, real_cluster: Cluster, group: str) -> None:
    import rados
    import rbd

    names = [f"volume-{uuid.uuid4()}" for _ in range(2)]
    for name in names:
        real_cluster.create(name, SIZE)
    real_cluster.group_snapshot(group, names)
    with (
        rados.Rados(conffile=str(ceph.conf), name=f"client.{ceph.user}") as handle,
        handle.open_ioctx(ceph.pool) as ioctx,
        rbd.Image(ioctx, names[0]) as image,
    ):
        [part] = image.list_snaps()
        image.remove_snap_by_id(part["id"])
    real_cluster.group_snapshot(group, names)
    assert [first_byte(real_cluster, name, group) for name in names] == [b"\0"] * 2
    real_cluster.remove_group_snapshot(group, names)
    assert group not in ceph.rbd("group", "ls", ceph.pool)
    for name in names:
        assert ceph.rbd("snap", "ls", "--all", f"{ceph.pool}/{name}") == ""
