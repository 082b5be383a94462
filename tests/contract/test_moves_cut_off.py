# SPDX-License-Identifier: Apache-2.0
"""What a killed client leaves of an image that it was moving to another pool: the next try moves it, with its data."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from lab.ceph import Ceph

pytestmark = pytest.mark.real

SIZE = 2**26
DATA = b"kept" * 2**18
TARGET = "second"
#: The states of a migration as its header has them.
PREPARING, EXECUTED = 1, 4


class Half:
    """An image of which librbd has prepared the move, to be taken back step by step to what a kill leaves."""

    def __init__(self, source: Any, target: Any, name: str) -> None:
        import rbd

        self.source, self.target, self.name = source, target, name
        with rbd.Image(source, name) as image:
            self.source_id = image.id()
        rbd.RBD().migration_prepare(source, name, target, name)
        with rbd.Image(target, name) as image:
            self.target_id = image.id()

    def mark(self, state: int) -> None:
        """Write the state at both sides."""
        for pool, image_id in ((self.source, self.source_id), (self.target, self.target_id)):
            pool.execute(f"rbd_header.{image_id}", "rbd", "migration_set_state", struct.pack("<BI", state, 0))

    def unmark_target(self) -> None:
        self.target.execute(f"rbd_header.{self.target_id}", "rbd", "migration_remove", b"")

    def unmark_source(self) -> None:
        self.source.execute(f"rbd_header.{self.source_id}", "rbd", "migration_remove", b"")

    def drop_snapshots(self, pool: Any, **which: str) -> None:
        import rbd

        with rbd.Image(pool, **which) as image:
            for snap in list(image.list_snaps()):
                image.remove_snap(snap["name"])

    def drop_target(self) -> None:
        import rbd

        self.unmark_target()
        self.drop_snapshots(self.target, name=self.name)
        rbd.RBD().remove(self.target, self.name)

    def execute(self) -> None:
        """All that is done before librbd commits."""
        import rbd

        rbd.RBD().migration_execute(self.target, self.name)
        with rbd.Image(self.target, self.name) as image:
            image.metadata_set("cinderlite_moved", "yes")


def unlinked(half: Half) -> None:
    half.drop_target()
    half.unmark_source()


def marked(half: Half) -> None:
    half.drop_target()


def target_made(half: Half) -> None:
    half.unmark_target()
    half.drop_snapshots(half.target, name=half.name)


def target_with_snapshots(half: Half) -> None:
    half.unmark_target()


def both_marked(half: Half) -> None:
    half.mark(PREPARING)


def prepared(_half: Half) -> None:
    pass


def executed(half: Half) -> None:
    half.execute()


def committing(half: Half) -> None:
    half.execute()
    half.unmark_target()


def snapshots_dropped(half: Half) -> None:
    committing(half)
    half.unmark_source()
    half.drop_snapshots(half.source, image_id=half.source_id)


def header_gone(half: Half) -> None:
    snapshots_dropped(half)
    half.source.remove_object(f"rbd_header.{half.source_id}")


@pytest.fixture
def pools(ceph: Ceph, real_cluster: Cluster) -> Iterator[tuple[Any, Any]]:
    """The objects of both pools, over a client that makes clones as the service does."""
    import rados

    options = {"rbd_default_clone_format": "2"}
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(rados.Rados(conffile=str(ceph.conf), conf=options))
        yield (
            stack.enter_context(connection.open_ioctx(ceph.pool)),
            stack.enter_context(connection.open_ioctx(TARGET)),
        )


def make(cluster: Cluster) -> str:
    """An image with data, and a snapshot of it."""
    name = f"volume-{uuid.uuid4()}"
    cluster.create(name, SIZE)
    with cluster.opened(name, write=True) as image:
        image.write(0, DATA)
        image.flush()
    cluster.snapshot(name, "snapshot-x")
    return name


def check(pool: Any, name: str) -> None:
    """The image has its data and its snapshot, and takes new data."""
    import rbd

    with rbd.Image(pool, name) as image:
        assert image.read(0, len(DATA)) == DATA
        assert [snap["name"] for snap in image.list_snaps()] == ["snapshot-x"]
        image.write(b"new", SIZE - 3)
        assert image.metadata_list() is not None
        assert "cinderlite_moved" not in dict(image.metadata_list())


def aborting(half: Half) -> None:
    """The source has its name again, and is in the trash still."""
    import rados

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value)) + value.encode()

    half.mark(PREPARING)
    half.drop_target()
    half.source.write_full(f"rbd_id.{half.name}", text(half.source_id))
    with rados.WriteOpCtx() as change:
        keys = f"name_{half.name}", f"id_{half.source_id}"
        half.source.set_omap(change, keys, (text(half.source_id), text(half.name)))
        half.source.operate_write_op(change, "rbd_directory")


def aborted_but_for_the_mark(half: Half) -> None:
    import rados

    aborting(half)
    with rados.WriteOpCtx() as change:
        half.source.remove_omap_keys(change, (f"id_{half.source_id}",))
        half.source.operate_write_op(change, "rbd_trash")


CUTS: list[Callable[[Half], None]] = [
    unlinked, marked, target_made, target_with_snapshots, both_marked, prepared, executed, committing,
    snapshots_dropped, header_gone, aborting, aborted_but_for_the_mark,
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
def test_a_move_is_finished_after_a_kill(
    real_cluster: Cluster, pools: tuple[Any, Any], cut: Callable[[Half], None]
) -> None:
    import rbd

    source, target = pools
    name = make(real_cluster)
    cut(Half(source, target, name))
    real_cluster.move(name, TARGET)
    check(target, name)
    assert name not in rbd.RBD().list(source)
    assert name not in [former for _, former in real_cluster.trashed()]
    real_cluster.move(name, TARGET)  # Its end may have been lost.
    check(target, name)


@pytest.mark.parametrize("cut", [unlinked, committing], ids=lambda cut: cut.__name__)
def test_a_move_between_namespaces_is_finished_too(
    ceph: Ceph, real_cluster: Cluster, cut: Callable[[Half], None]
) -> None:
    import rados
    import rbd

    places = [real_cluster.within(f"cut-{word}") for word in ("source", "target")]
    name = make(places[0])
    places[1].create(f"{name}-other", SIZE)
    with (
        rados.Rados(conffile=str(ceph.conf), conf={"rbd_default_clone_format": "2"}) as connection,
        connection.open_ioctx(ceph.pool) as source,
        connection.open_ioctx(ceph.pool) as target,
    ):
        source.set_namespace(places[0].namespace)
        target.set_namespace(places[1].namespace)
        cut(Half(source, target, name))
        places[0].move(name, ceph.pool, places[1].namespace)
        check(target, name)
        assert rbd.RBD().list(source) == []
    assert places[0].trashed() == []
    places[1].remove_snapshot(name, "snapshot-x")
    for left in (name, f"{name}-other"):
        image_id = places[1].trash(left)
        assert image_id is not None
        assert places[1].purge(image_id)


def test_clones_find_their_parent_after_a_kill(real_cluster: Cluster, pools: tuple[Any, Any]) -> None:
    import rbd

    source, target = pools
    name, clone = make(real_cluster), f"volume-{uuid.uuid4()}"
    real_cluster.clone(name, "snapshot-x", clone, SIZE)
    both_marked(Half(source, target, name))
    real_cluster.move(name, TARGET)
    check(target, name)
    with rbd.Image(source, clone) as image:
        assert image.read(0, len(DATA)) == DATA


def test_a_move_that_cannot_be_done_is_taken_back(ceph: Ceph, real_cluster: Cluster, pools: tuple[Any, Any]) -> None:
    """The user may write headers to the target, and no data."""
    import rbd

    rights = f"profile rbd pool={ceph.pool}, allow rwx pool={TARGET} object_prefix rbd_"
    key = ceph.command("auth", "get-or-create", "client.half", "mon", "profile rbd", "osd", rights)
    conf = ceph.directory / "half.conf"
    keyring = ceph.directory / "half.keyring"
    keyring.write_text(key, encoding="utf-8")
    conf.write_text(f"{ceph.conf.read_text(encoding='utf-8')}\n[client.half]\nkeyring = {keyring}\n", encoding="utf-8")
    half = Cluster(
        pool=ceph.pool, conffile=str(conf), user="half", connect_timeout=5, mon_timeout=5, osd_timeout=5,
        call_timeout=10.0, threads=1,
    )  # fmt: skip
    name = make(real_cluster)
    try:
        with pytest.raises(errors.CephError):
            half.move(name, TARGET)
    finally:
        half.close()
    source, target = pools
    check(source, name)
    assert name not in rbd.RBD().list(target)
    assert name not in [former for _, former in real_cluster.trashed()]


#: Opens an image, takes its lock by writing to it, says so, and waits to be killed.
HOLDER = """
import sys, time, rados, rbd
conf, pool, name, at = sys.argv[1:]
with rados.Rados(conffile=conf) as cluster, cluster.open_ioctx(pool) as ioctx, rbd.Image(ioctx, name) as image:
    image.write(b"kept", int(at))
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("cut", [both_marked, prepared, executed], ids=lambda cut: cut.__name__)
def test_one_that_a_dead_client_still_holds_half_way_is_moved_on_later(
    ceph: Ceph, real_cluster: Cluster, pools: tuple[Any, Any], cut: Callable[[Half], None]
) -> None:
    """Ceph takes it for alive for a while. Nobody may say then that the image is where it was: that is not so."""
    source, target = pools
    name = make(real_cluster)
    half = Half(source, target, name)
    words = [sys.executable, "-c", HOLDER, str(ceph.conf), TARGET, name, "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    cut(half)
    began = time.monotonic()
    while True:
        try:
            real_cluster.move(name, TARGET)
            break
        except errors.CephUnavailable:
            assert time.monotonic() - began < 90
    check(target, name)
    assert name not in [former for _, former in real_cluster.trashed()]


def test_an_image_in_use_stays_where_it_is(real_cluster: Cluster, pools: tuple[Any, Any]) -> None:
    import rbd

    source, target = pools
    name = make(real_cluster)
    with rbd.Image(source, name) as held:
        [address] = [str(one["addr"]) for one in held.watchers_list()]
        with pytest.raises(errors.ImageBusy, match=re.escape(address)):
            real_cluster.move(name, TARGET)
    check(source, name)
    assert name not in rbd.RBD().list(target)


def test_an_image_of_which_a_clone_needs_a_deleted_snapshot_stays(
    real_cluster: Cluster, pools: tuple[Any, Any]
) -> None:
    """librbd does not prepare that. So no commit can be cut off that leaves such a snapshot at the source."""
    import rbd

    source, target = pools
    name, clone = make(real_cluster), f"volume-{uuid.uuid4()}"
    real_cluster.snapshot(name, "snapshot-y")
    real_cluster.clone(name, "snapshot-y", clone, SIZE)
    real_cluster.remove_snapshot(name, "snapshot-y")
    with pytest.raises(errors.ImageBusy):
        real_cluster.move(name, TARGET)
    with rbd.Image(source, name) as image:
        assert image.read(0, len(DATA)) == DATA
        image.write(b"new", SIZE - 3)
    with rbd.Image(source, clone) as image:
        assert image.read(0, len(DATA)) == DATA
    assert name not in rbd.RBD().list(target)
    assert name not in [former for _, former in real_cluster.trashed()]
