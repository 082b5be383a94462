# SPDX-License-Identifier: Apache-2.0
"""Snapshots, clones and what they mean for deletion, tried on the fake cluster and on a real one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cinderlite import errors, jobs
from cinderlite.ceph.cluster import Cluster
from cinderlite.ceph.data import CHUNK_BYTES
from fakes_cluster import FakeCluster
from lab.process import PATIENCE

GIB = 2**30
Write = Callable[[str, str], None]
Read = Callable[[str], str]


@pytest.fixture
def name() -> str:
    return f"volume-{uuid.uuid4()}"


@pytest.fixture
def write(request: pytest.FixtureRequest, cluster: Cluster) -> Write:
    """Puts a few letters at the start of an image."""
    if isinstance(cluster, FakeCluster):
        fake = cluster
        return lambda name, text: fake.data.__setitem__(fake.stored[name][0], text)
    ceph = request.getfixturevalue("ceph")
    return lambda name, text: ceph.write(name, text.encode().ljust(16, b"\0"))


@pytest.fixture
def read(request: pytest.FixtureRequest, cluster: Cluster) -> Read:
    """Reads the letters again."""
    if isinstance(cluster, FakeCluster):
        fake = cluster
        return lambda name: fake.data.get(fake.stored[name][0], "")
    ceph = request.getfixturevalue("ceph")
    return lambda name: ceph.read(name, 16).rstrip(b"\0").decode()


def gone(cluster: Cluster, image_id: str, snaps: tuple[str, ...] = ()) -> bool:
    """Whether a trashed image can be removed; Ceph drops what a clone held a moment after the clone."""
    deadline = time.monotonic() + PATIENCE * 10
    while time.monotonic() < deadline:
        with contextlib.suppress(errors.ImageBusy):
            if cluster.purge(image_id, snaps):
                return True
        time.sleep(0.2)
    return False


def test_a_snapshot_is_taken_once(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    for _ in range(2):
        cluster.snapshot(name, "snapshot-a")
    cluster.grow(name, 2 * GIB)
    cluster.snapshot(name, "snapshot-b")
    assert [(one.name, one.size_bytes) for one in cluster.snapshots(name)] == [
        ("snapshot-a", GIB), ("snapshot-b", 2 * GIB)]  # fmt: skip
    for _ in range(2):
        cluster.remove_snapshot(name, "snapshot-a")
    assert [one.name for one in cluster.snapshots(name)] == ["snapshot-b"]
    cluster.remove_snapshot(f"{name}-that-is-not-there", "snapshot-a")
    with pytest.raises(errors.ImageNotFound):
        cluster.snapshot(f"{name}-that-is-not-there", "snapshot-a")


def test_a_clone_has_the_data_of_its_moment(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    cluster.create(name, GIB)
    write(name, "before")
    cluster.snapshot(name, "snapshot-a")
    write(name, "after")
    for _ in range(2):
        cluster.clone(name, "snapshot-a", f"{name}-clone", 3 * GIB)
    assert read(f"{name}-clone") == "before"
    assert read(name) == "after"
    assert cluster.info(f"{name}-clone").size_bytes == 3 * GIB
    with pytest.raises(errors.ImageNotFound):
        cluster.clone(name, "snapshot-b", f"{name}-other", GIB)


def test_a_clone_outlives_its_snapshot_and_its_parent(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    cluster.create(name, GIB)
    write(name, "kept")
    cluster.snapshot(name, "snapshot-a")
    cluster.clone(name, "snapshot-a", f"{name}-clone", GIB)
    cluster.remove_snapshot(name, "snapshot-a")
    assert cluster.snapshots(name) == []
    parent = cluster.trash(name)
    assert parent is not None
    with pytest.raises(errors.ImageBusy):
        cluster.purge(parent)
    assert read(f"{name}-clone") == "kept"
    child = cluster.trash(f"{name}-clone")
    assert child is not None
    assert gone(cluster, child)
    assert gone(cluster, parent)


def test_an_image_is_emptied_and_its_snapshots_stay(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    cluster.create(name, GIB)
    write(name, "kept")
    cluster.snapshot(name, "snapshot-a")
    write(name, "lost")
    for _ in range(2):
        with cluster.opened(name, write=True) as image:
            image.resize(0)
    assert cluster.info(name).size_bytes == 0
    assert [(one.name, one.size_bytes) for one in cluster.snapshots(name)] == [("snapshot-a", GIB)]
    cluster.clone(name, "snapshot-a", f"{name}-clone", GIB)
    assert read(f"{name}-clone") == "kept"
    with cluster.opened(name, "snapshot-a") as image:
        assert (image.size_bytes, image.read(0, 4)) == (GIB, b"kept")
    cluster.remove_snapshot(name, "snapshot-a")
    parent = cluster.trash(name)
    assert parent is not None
    with pytest.raises(errors.ImageBusy):
        cluster.purge(parent)
    assert read(f"{name}-clone") == "kept"
    child = cluster.trash(f"{name}-clone")
    assert child is not None
    assert gone(cluster, child)
    assert gone(cluster, parent)


def test_a_copy_has_the_data_of_now_and_leaves_no_snapshot(
    cluster: Cluster, name: str, write: Write, read: Read
) -> None:
    cluster.create(name, GIB)
    write(name, "first")
    for _ in range(2):
        cluster.copy(name, f"{name}-copy", 2 * GIB)
        write(name, "second")
    assert read(f"{name}-copy") == "first"
    assert cluster.info(f"{name}-copy").size_bytes == 2 * GIB
    assert cluster.snapshots(name) == []


def test_a_copy_is_as_big_as_was_asked_for(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    """Its source may have been extended since."""
    cluster.create(name, 3 * GIB)
    write(name, "first")
    for _ in range(2):
        cluster.copy(name, f"{name}-copy", 2 * GIB)
    assert cluster.info(f"{name}-copy").size_bytes == 2 * GIB
    assert cluster.info(name).size_bytes == 3 * GIB
    assert read(f"{name}-copy") == "first"


def test_what_a_copy_left_of_an_image_goes_with_it(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    cluster.snapshot(name, f"{name}-copy.clone_snap")
    image_id = cluster.trash(name)
    assert image_id is not None
    assert gone(cluster, image_id)


def test_an_image_in_the_trash_goes_with_the_snapshots_that_are_named(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    cluster.snapshot(name, "snapshot-a")
    cluster.snapshot(name, "snapshot-b")
    image_id = cluster.trash(name)
    assert image_id is not None
    with pytest.raises(errors.ImageBusy):
        cluster.purge(image_id, ["snapshot-a"])
    assert cluster.purge(image_id, ["snapshot-a", "snapshot-b"])
    assert cluster.purge(image_id, ["snapshot-a", "snapshot-b"])


def test_an_image_is_taken_back(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    cluster.create(name, GIB)
    write(name, "good")
    cluster.snapshot(name, "snapshot-a")
    write(name, "bad")
    cluster.roll_back(name, "snapshot-a")
    assert read(name) == "good"
    with pytest.raises(errors.ImageNotFound):
        cluster.roll_back(name, "snapshot-b")


def test_an_image_only_grows(cluster: Cluster, name: str) -> None:
    cluster.create(name, 2 * GIB)
    cluster.grow(name, 3 * GIB)
    cluster.grow(name, GIB)
    assert cluster.info(name).size_bytes == 3 * GIB
    with pytest.raises(errors.ImageNotFound):
        cluster.grow(f"{name}-that-is-not-there", GIB)


def test_images_and_snapshots_get_other_names(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    cluster.snapshot(name, "theirs")
    for _ in range(2):
        cluster.rename(name, f"{name}-new")
        cluster.rename_snapshot(f"{name}-new", "theirs", "snapshot-a")
    assert [one.name for one in cluster.snapshots(f"{name}-new")] == ["snapshot-a"]
    with pytest.raises(errors.ImageNotFound):
        cluster.info(name)
    cluster.create(name, GIB)
    with pytest.raises(errors.ImageExists):
        cluster.rename(name, f"{name}-new")
    with pytest.raises(errors.ImageNotFound):
        cluster.rename(f"{name}-x", f"{name}-y")
    with pytest.raises(errors.ImageNotFound):
        cluster.rename_snapshot(name, "theirs", "snapshot-a")


@pytest.fixture
def target(request: pytest.FixtureRequest, cluster: Cluster) -> Cluster:
    """Another pool of the same cluster."""
    if isinstance(cluster, FakeCluster):
        cluster.others["second"] = FakeCluster(pool="second")
        cluster.others["second"].others[cluster.pool] = cluster
        return cluster.others["second"]
    found: Cluster = request.getfixturevalue("real_target")
    return found


@pytest.fixture(scope="module")
def real_target(ceph: Any) -> Iterator[Cluster]:
    made = Cluster(
        pool="second", conffile=str(ceph.conf), user=ceph.user, connect_timeout=5, mon_timeout=5, osd_timeout=5,
        call_timeout=10.0, threads=4,
    )  # fmt: skip
    yield made
    made.close()


def test_an_image_moves_to_another_pool_with_its_snapshots(
    cluster: Cluster, target: Cluster, name: str, write: Write
) -> None:
    cluster.create(name, GIB)
    write(name, "kept")
    cluster.limit(name, {"read_bytes_sec": 2**30})
    cluster.snapshot(name, "snapshot-a")
    for _ in range(2):
        cluster.move(name, target.pool)
    with target.opened(name) as moved:
        assert moved.note("conf_rbd_qos_read_bps_limit") == str(2**30)
    assert target.info(name).size_bytes == GIB
    assert [one.name for one in target.snapshots(name)] == ["snapshot-a"]
    with pytest.raises(errors.ImageNotFound):
        cluster.info(name)
    with pytest.raises(errors.ImageNotFound):
        cluster.move(f"{name}-that-is-not-there", target.pool)


@pytest.mark.real
def test_the_trash_is_listed_while_an_image_moves(ceph: Any, real_cluster: Cluster, name: str) -> None:
    import rados
    import rbd

    ceph.add_pool("second")
    with (
        rados.Rados(conffile=str(ceph.conf), name=f"client.{ceph.user}") as connected,
        connected.open_ioctx(ceph.pool) as here,
        connected.open_ioctx("second") as there,
    ):
        thrown = []
        for each in (f"{name}-ä", f"{name}-b"):
            real_cluster.create(each, GIB)
            thrown.append((real_cluster.trash(each), each))
        real_cluster.create(name, GIB)
        rbd.RBD().migration_prepare(here, name, there, name)
        try:
            assert [entry for entry in real_cluster.trashed() if entry[1].startswith(name)] == thrown
            assert real_cluster.trash(f"{name}-that-is-not-there") is None
        finally:
            rbd.RBD().migration_abort(there, name)


def test_a_clone_moves_whose_snapshot_is_gone(cluster: Cluster, target: Cluster, name: str, write: Write) -> None:
    cluster.create(name, GIB)
    write(name, "kept")
    cluster.snapshot(name, "snapshot-a")
    cluster.clone(name, "snapshot-a", f"{name}-clone", GIB)
    cluster.snapshot(f"{name}-clone", "snapshot-b")
    cluster.remove_snapshot(name, "snapshot-a")
    for _ in range(2):
        cluster.move(f"{name}-clone", target.pool)
    assert [one.name for one in target.snapshots(f"{name}-clone")] == ["snapshot-b"]
    assert cluster.info(name).size_bytes == GIB


def test_an_image_of_another_pool_can_be_cloned(cluster: Cluster, target: Cluster, name: str, write: Write) -> None:
    cluster.create(name, GIB)
    write(name, "shared")
    cluster.snapshot(name, "snap")
    assert target.size_elsewhere(cluster.pool, name, "snap") == GIB
    for _ in range(2):
        target.clone_elsewhere(cluster.pool, name, "snap", f"{name}-clone", 2 * GIB)
    assert target.info(f"{name}-clone").size_bytes == 2 * GIB
    with target.opened(f"{name}-clone") as clone:
        assert clone.read(0, 6) == b"shared"
    for pool, image, snap in (
        (cluster.pool, name, "none"),
        (cluster.pool, f"{name}-none", "snap"),
        ("none", name, "snap"),
    ):
        with pytest.raises(errors.ImageNotFound):
            target.size_elsewhere(pool, image, snap)
        with pytest.raises(errors.ImageNotFound):
            target.clone_elsewhere(pool, image, snap, f"{name}-other", GIB)


def test_an_image_in_the_trash_is_there_for_a_clone_in_another_pool_until_that_is_whole(
    cluster: Cluster, target: Cluster, name: str, write: Write
) -> None:
    cluster.create(name, GIB)
    for snap in ("first", "second"):
        write(name, snap)
        cluster.snapshot(name, snap)
    target.clone_elsewhere(cluster.pool, name, "first", f"{name}-clone", GIB)
    cluster.remove_snapshot(name, "first")
    image_id = cluster.trash(name)
    assert image_id is not None
    with pytest.raises(errors.ImageBusy):
        cluster.purge(image_id, ["second"])
    assert target.depth(f"{name}-clone", 9) == 1
    target.flatten(f"{name}-clone", lambda _clients: None, lambda _done, _total: None)
    assert target.depth(f"{name}-clone", 9) == 0
    assert gone(cluster, image_id, ("second",))
    with target.opened(f"{name}-clone") as clone:
        assert clone.read(0, 6) == b"first\0"


def chain(cluster: Cluster, name: str) -> list[str]:
    """An image, a clone of it, and a clone of that."""
    cluster.create(name, GIB)
    made = [name]
    for one in (f"{name}-1", f"{name}-2"):
        cluster.snapshot(made[-1], "snap")
        cluster.clone(made[-1], "snap", one, GIB)
        made.append(one)
    return made


def test_what_is_below_a_clone_is_counted(cluster: Cluster, name: str) -> None:
    made = chain(cluster, name)
    assert [cluster.depth(one, 9) for one in made] == [0, 1, 2]
    assert cluster.depth(made[2], 1) == 1
    cluster.trash(made[0])
    cluster.remove_snapshot(made[1], "snap")
    assert cluster.depth(made[2], 9) == 2
    with pytest.raises(errors.ImageNotFound):
        cluster.depth(f"{name}-that-is-not-there", 9)


def test_a_clone_is_made_whole_and_frees_what_was_below(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    cluster.create(name, GIB)
    write(name, "shared")
    cluster.snapshot(name, "snap")
    cluster.clone(name, "snap", f"{name}-1", GIB)
    cluster.snapshot(f"{name}-1", "own")
    told: list[object] = []
    for _ in range(2):
        cluster.flatten(f"{name}-1", told.append, lambda done, total: told.append(0 <= done <= total))
    addresses = [one for one in told if one is not True]
    assert len(addresses) == 2
    assert all(addresses)
    assert len(told) > 2
    assert cluster.depth(f"{name}-1", 9) == 0
    assert [one.name for one in cluster.snapshots(f"{name}-1")] == ["own"]
    parent = cluster.trash(name)
    assert parent is not None
    assert gone(cluster, parent, ("snap",))
    assert read(f"{name}-1") == "shared"
    with pytest.raises(errors.ImageNotFound):
        cluster.flatten(f"{name}-that-is-not-there", told.append, lambda _done, _total: None)


def test_a_flatten_that_may_not_begin_does_nothing(cluster: Cluster, name: str) -> None:
    made = chain(cluster, name)

    def refuse(_addresses: object) -> None:
        raise errors.AtWork(name)

    with pytest.raises(errors.AtWork):
        cluster.flatten(made[1], refuse, lambda _done, _total: None)
    assert cluster.depth(made[1], 9) == 1


def test_a_flatten_leaves_off_when_its_lease_is_lost(cluster: Cluster, name: str) -> None:
    made = chain(cluster, name)
    job = jobs._Job(lambda: True, 60.0)
    jobs._HERE.job = job
    try:
        with pytest.raises(errors.Superseded):
            cluster.flatten(made[1], lambda _addresses: None, lambda _done, _total: setattr(job, "lost", True))
    finally:
        jobs._HERE.job = None
    assert cluster.depth(made[1], 9) == 1
    cluster.flatten(made[1], lambda _addresses: None, lambda _done, _total: None)
    assert cluster.depth(made[2], 9) == 1


def test_an_image_comes_back_from_the_trash(cluster: Cluster, name: str, write: Write, read: Read) -> None:
    cluster.create(name, GIB)
    write(name, "kept")
    cluster.snapshot(name, "snap")
    image_id = cluster.trash(name, keep_seconds=3600)
    assert image_id is not None
    for _ in range(2):
        cluster.restore(image_id, name)
    assert cluster.info(name).id == image_id
    assert read(name) == "kept"
    assert [one.name for one in cluster.snapshots(name)] == ["snap"]
    assert (image_id, name) not in cluster.trashed()
    with pytest.raises(errors.ImageExists):
        cluster.restore("0123456789ab", name)
    with pytest.raises(errors.ImageNotFound):
        cluster.restore("0123456789ab", f"{name}-that-is-not-there")


def test_an_image_that_is_kept_in_the_trash_can_be_purged_all_the_same(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    image_id = cluster.trash(name, keep_seconds=3600)
    assert image_id is not None
    assert cluster.purge(image_id)
    with pytest.raises(errors.ImageNotFound):
        cluster.restore(image_id, name)


def test_an_image_can_be_used_while_it_is_made_whole(cluster: Cluster, name: str) -> None:
    clone, begun = f"{name}-1", threading.Event()
    cluster.create(name, GIB // 2)
    with cluster.opened(name, write=True) as image:
        for number in range(16):
            image.write(number * CHUNK_BYTES, bytes([number]) * CHUNK_BYTES)
    cluster.snapshot(name, "snap")
    cluster.clone(name, "snap", clone, GIB // 2)

    def slowly(_done: int, _total: int) -> None:
        begun.set()
        time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        whole = pool.submit(cluster.flatten, clone, lambda _addresses: None, slowly)
        assert begun.wait(PATIENCE * 10)
        cluster.snapshot(clone, "own")
        cluster.grow(clone, GIB)
        with cluster.opened(clone, write=True) as image:
            image.write(0, b"new")
        cluster.clone(clone, "own", f"{name}-2", GIB)
        whole.result(PATIENCE * 30)
    assert cluster.depth(clone, 9) == 0
    for one, start in ((clone, b"new\0"), (f"{name}-2", bytes(4))):
        with cluster.opened(one) as image:
            assert image.read(0, 4) == start
            assert all(image.read(number * CHUNK_BYTES, 1) == bytes([number]) for number in range(1, 16))


def test_an_image_can_be_deleted_while_it_is_made_whole(cluster: Cluster, name: str) -> None:
    clone, begun = f"{name}-1", threading.Event()
    cluster.create(name, GIB // 2)
    cluster.snapshot(name, "snap")
    cluster.clone(name, "snap", clone, GIB // 2)

    def slowly(_done: int, _total: int) -> None:
        begun.set()
        time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        whole = pool.submit(cluster.flatten, clone, lambda _addresses: None, slowly)
        assert begun.wait(PATIENCE * 10)
        image_id = cluster.trash(clone)
        assert image_id is not None
        with contextlib.suppress(errors.CinderliteError):
            whole.result(PATIENCE * 30)
    assert gone(cluster, image_id)
