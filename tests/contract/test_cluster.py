# SPDX-License-Identifier: Apache-2.0
"""What `core` may expect of a cluster, tried on the fake and on a real one; and faults, on the real one alone.

The real cluster is one node with one OSD, started for this module; whoever freezes a part of it thaws it again.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cinderlite import affinity, errors
from cinderlite.ceph import cluster as module
from cinderlite.ceph.cluster import BREAKER_SECONDS, FRESH_SECONDS, Cluster
from fakes_cluster import FakeCluster
from lab.process import PATIENCE, wait

GIB = 2**30
real = pytest.mark.real
Connect = Callable[..., Cluster]


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if shutil.which("ceph-mon") is None:
        pytest.skip("no Ceph on this machine")
    pytest.importorskip("rbd")
    from lab.ceph import Ceph

    ceph = Ceph(tmp_path_factory.mktemp("ceph"))
    ceph.start()
    try:
        yield ceph
    finally:
        ceph.stop()


@pytest.fixture(scope="module")
def connect(ceph: Any) -> Iterator[Connect]:
    """A function that makes a Cluster; it takes whatever shall be otherwise, such as time-outs that a test waits for."""
    with contextlib.ExitStack() as made:

        def connect(**otherwise: Any) -> Cluster:
            settings: dict[str, Any] = {
                "pool": ceph.pool,
                "conffile": str(ceph.conf),
                "user": ceph.user,
                "connect_timeout": 15,
                "mon_timeout": 15,
                "osd_timeout": 15,
                "call_timeout": 30.0,
                "threads": 8,
            }
            cluster = Cluster(**settings | otherwise)
            made.callback(cluster.close)
            return cluster

        yield connect


@pytest.fixture(scope="module")
def real_cluster(connect: Connect) -> Cluster:
    return connect()


@pytest.fixture
def name() -> str:
    return f"volume-{uuid.uuid4()}"


@pytest.fixture
def watched(
    request: pytest.FixtureRequest, cluster: Cluster
) -> Callable[[str], contextlib.AbstractContextManager[Any]]:
    """A context manager in which somebody else has the image of that name open."""
    if not isinstance(cluster, FakeCluster):
        ceph = request.getfixturevalue("ceph")
        return lambda name: opened(ceph, name)
    fake = cluster

    @contextlib.contextmanager
    def watched(name: str) -> Iterator[None]:
        fake.watchers[name] = ["192.0.2.7:0/1"]
        yield
        del fake.watchers[name]

    return watched


@contextlib.contextmanager
def opened(ceph: Any, name: str | None = None) -> Iterator[Any]:
    """Another client's I/O context, and with a name that image open for writing."""
    import rados
    import rbd

    client = rados.Rados(conffile=str(ceph.conf), name=f"client.{ceph.user}")
    client.connect()
    try:
        with client.open_ioctx(ceph.pool) as ioctx:
            if name is None:
                yield ioctx
            else:
                with rbd.Image(ioctx, name):
                    yield ioctx
    finally:
        client.shutdown()


@contextlib.contextmanager
def frozen(ceph: Any, part: str) -> Iterator[None]:
    getattr(ceph, f"pause_{part}")()
    try:
        yield
    finally:
        getattr(ceph, f"resume_{part}")()


def recovers(cluster: Cluster, seconds: float = 20) -> None:
    deadline = time.monotonic() + PATIENCE * seconds
    while True:
        try:
            cluster.check()
        except errors.CephUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


# On both


def test_the_fake_has_every_method_of_its_own() -> None:
    public = {name for name, value in vars(Cluster).items() if callable(value) and not name.startswith("_")}
    assert public <= set(vars(FakeCluster))


def test_create_may_be_repeated(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    first = cluster.info(name)
    cluster.create(name, GIB)
    assert cluster.info(name) == first
    assert first.size_bytes == GIB
    assert first.watchers == []


def test_create_refuses_another_size(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    with pytest.raises(errors.ImageExists, match=name):
        cluster.create(name, 2 * GIB)
    assert cluster.info(name).size_bytes == GIB


def test_info_of_nothing(cluster: Cluster, name: str) -> None:
    with pytest.raises(errors.ImageNotFound, match=name):
        cluster.info(name)


def test_trash_and_purge_may_be_repeated(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    image_id = cluster.info(name).id
    assert cluster.trash(name) == image_id
    assert cluster.trash(name) == image_id
    assert (image_id, name) in cluster.trashed()
    assert name not in cluster.images("volume-")
    assert cluster.purge(image_id)
    assert cluster.purge(image_id)
    assert (image_id, name) not in cluster.trashed()
    assert cluster.trash(name) is None


def test_an_image_that_somebody_has_open_is_not_trashed_unless_that_is_said(
    cluster: Cluster, name: str, watched: Callable[[str], contextlib.AbstractContextManager[Any]]
) -> None:
    cluster.create(name, GIB)
    with watched(name):
        clients = cluster.info(name).watchers
        with pytest.raises(errors.ImageBusy):
            cluster.trash(name, frozenset({"192.0.2.9:0/9"}))
        assert cluster.trash(name, frozenset(clients)) is not None


def test_a_name_may_be_used_again_while_its_image_is_in_the_trash(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    old = cluster.trash(name)
    cluster.create(name, 2 * GIB)
    new = cluster.trash(name)
    assert old
    assert new
    assert old != new
    assert cluster.purge(old)
    assert cluster.trash(name) == new


def test_an_image_that_is_held_tells_who_comes_and_goes_and_is_held_up_by_nobody(
    cluster: Cluster, name: str, watched: Any
) -> None:
    with pytest.raises(errors.ImageNotFound):
        cluster.hold(name)
    cluster.create(name, GIB)
    held = cluster.hold(name)
    try:
        assert held.watchers() == []
        with watched(name):
            assert held.watchers() == cluster.info(name).watchers != []
        assert held.watchers() == []
        assert cluster.purge(str(cluster.trash(name)))
        with pytest.raises(errors.ImageNotFound):
            held.watchers()
    finally:
        held.close()


def test_an_open_image_stays(cluster: Cluster, name: str, watched: Any) -> None:
    cluster.create(name, GIB)
    with watched(name):
        (watcher,) = cluster.info(name).watchers
        with pytest.raises(errors.ImageBusy) as raised:
            cluster.trash(name)
        assert watcher in str(raised.value)
        assert name in cluster.images(name)
    assert cluster.info(name).watchers == []
    assert cluster.trash(name)


def test_limits_come_change_and_go_and_no_clone_has_them(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    every = {f"{what}_{unit}_sec" for what in ("total", "read", "write") for unit in ("iops", "bytes")}
    every = {base + end for base in every for end in ("", "_max", "_max_length")}
    options = {key: _option(key) for key in every}
    for limits in (dict.fromkeys(every, 1000), {"read_bytes_sec": 7, "size_iops_sec": 4096}, {}):
        for _ in range(2):
            cluster.limit(name, limits)
            with cluster.opened(name) as image:
                now = {key: image.note(f"conf_{option}") for key, option in options.items()}
                assert now == {key: str(limits[key]) if key in limits else None for key in every}
    cluster.limit(name, {"total_iops_sec": 10})
    cluster.snapshot(name, "snap")
    cluster.clone(name, "snap", f"{name}-clone", GIB)
    cluster.copy(name, f"{name}-copy", GIB)
    for other in (f"{name}-clone", f"{name}-copy"):
        with cluster.opened(other) as image:
            assert [image.note(f"conf_{option}") for option in options.values()] == [None] * len(options)
    with pytest.raises(errors.ImageNotFound):
        cluster.limit("nothing", {"read_bytes_sec": 7})


def _option(limit: str) -> str:
    what, unit, _, *end = limit.split("_")
    of = "" if what == "total" else f"{what}_"
    last = {"": "limit", "max": "burst", "max_length": "burst_seconds"}["_".join(end)]
    return f"rbd_qos_{of}{'bps' if unit == 'bytes' else 'iops'}_{last}"


def test_images_by_prefix(cluster: Cluster, name: str) -> None:
    cluster.create(f"{name}-a", GIB)
    cluster.create(f"{name}-b", GIB)
    assert cluster.images(name) == {f"{name}-a", f"{name}-b"}
    assert cluster.images("nothing-like-it") == set()


def test_capacity(cluster: Cluster, name: str) -> None:
    cluster.create(name, GIB)
    deadline = time.monotonic() + 20
    while True:
        # The manager of a cluster that was just made has no statistics yet.
        try:
            capacity = cluster.capacity()
            break
        except errors.CephUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert capacity.total_bytes >= capacity.free_bytes > 0
    assert capacity.used_bytes >= 0
    assert capacity.provisioned_bytes >= 0
    assert cluster.capacity() == capacity


def test_what_a_hypervisor_needs(cluster: Cluster) -> None:
    for host, port in cluster.monitors():
        assert "[" not in host
        assert 0 < port < 65536
    assert uuid.UUID(cluster.fsid())
    key = cluster.key()
    assert key
    assert len(key) >= 40
    assert key not in repr(cluster)


def test_check_and_ping(cluster: Cluster) -> None:
    cluster.check()
    assert 0 <= cluster.ping() < 2


# The fake's knobs, which the tests of `core` rely on


def test_fake_down() -> None:
    fake = FakeCluster()
    fake.down = True
    for call in (fake.check, fake.ping, fake.capacity, lambda: fake.create("a", GIB), lambda: fake.trash("a")):
        with pytest.raises(errors.CephUnavailable):
            call()


def test_fake_stuck() -> None:
    fake = FakeCluster()
    fake.stuck = True
    with pytest.raises(errors.CephTimeout) as raised:
        fake.create("a", GIB)
    with pytest.raises(errors.CephUnavailable):
        fake.info("a")
    assert raised.value.pending is not None
    assert not raised.value.pending.done()
    assert fake.overdue() > 0
    fake.release()
    assert fake.overdue() == 0
    assert raised.value.pending.done()
    assert fake.info("a").size_bytes == GIB


# Faults


@real
@pytest.mark.timeout(60)
def test_osd_frozen(ceph: Any, connect: Connect, name: str) -> None:
    asked: list[str] = []
    cluster = connect(osd_timeout=30, call_timeout=2.0, observe=lambda verb, _seconds, _ok: asked.append(verb))
    recovers(cluster)
    with frozen(ceph, "osd"):
        with pytest.raises(errors.CephTimeout) as raised:
            cluster.create(name, GIB)
        with pytest.raises(errors.CephUnavailable):
            cluster.check()
        asked.clear()
        with pytest.raises(errors.CephUnavailable):
            cluster.check()
        assert not asked, "Ceph was asked, though the fault is known"
        with pytest.raises(errors.CephUnavailable, match="an earlier call"):
            cluster.info(name)
    assert raised.value.pending is not None
    raised.value.pending.exception(20)
    recovers(cluster)
    cluster.create(name, GIB)
    assert cluster.info(name).size_bytes == GIB


@real
@pytest.mark.timeout(60)
def test_osd_frozen_and_librados_notices(ceph: Any, connect: Connect, name: str) -> None:
    cluster = connect(osd_timeout=1, call_timeout=10.0)
    recovers(cluster)
    time.sleep(FRESH_SECONDS)
    with frozen(ceph, "osd"):
        with pytest.raises(errors.CephUnavailable):
            cluster.check()
        with pytest.raises(errors.Unavailable):
            cluster.create(name, GIB)
    recovers(cluster)
    cluster.create(name, GIB)


@real
@pytest.mark.timeout(60)
def test_mon_frozen(ceph: Any, connect: Connect, name: str) -> None:
    cluster = connect(mon_timeout=2, osd_timeout=2, call_timeout=3.0)
    recovers(cluster)
    cluster.create(name, GIB)
    with frozen(ceph, "mon"):
        with pytest.raises(errors.Unavailable):
            cluster.ping()
        # Whether a write-open needs a monitor depends on the state of the image; it may end well or in doubt, but ends.
        pending = None
        try:
            cluster.trash(name)
        except errors.CephTimeout as error:
            pending = error.pending
        with pytest.raises(errors.CephUnavailable):
            cluster.check()
    if pending is not None:
        assert pending.exception(30) is None
    recovers(cluster)
    image_id = cluster.trash(name)
    assert image_id
    assert cluster.purge(image_id)


@real
@pytest.mark.timeout(60)
def test_stuck_calls_are_bounded(ceph: Any, connect: Connect, name: str) -> None:
    cluster = connect(osd_timeout=30, call_timeout=1.0, threads=2)
    recovers(cluster)
    with frozen(ceph, "osd"):
        for number in range(2):
            with pytest.raises(errors.CephTimeout):
                cluster.create(f"{name}-{number}", GIB)
        for number in range(20):
            with pytest.raises(errors.CephUnavailable, match="stuck"):
                cluster.create(f"{name}-more-{number}", GIB)
        began = cluster.overdue()
        time.sleep(0.2)
        assert 0.2 < cluster.overdue() - began < 20
    recovers(cluster)
    wait(lambda: cluster.overdue() == 0, timeout=30, what="the calls to end")
    assert not cluster.images(f"{name}-more")


def threads_called(start: str) -> set[int]:
    """Threads of this process with names that begin so."""
    found = set()
    for one in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It may have ended meanwhile.
            if (one / "comm").read_text(encoding="ascii").startswith(start):
                found.add(int(one.name))
    return found


@real
def test_librados_runs_anywhere_though_we_stay_on_one_processor(connect: Connect) -> None:
    def stays() -> None:
        affinity.stay_on(min(affinity.GIVEN))
        connect().check()
        assert os.sched_getaffinity(0) == {min(affinity.GIVEN)}

    before = threads_called("msgr-worker")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stays).result(30)
    made = threads_called("msgr-worker") - before
    assert made
    assert {frozenset(os.sched_getaffinity(one)) for one in made} == {affinity.GIVEN}


@real
def test_one_prober_at_a_time(ceph: Any, connect: Connect) -> None:
    probes: list[bool] = []
    cluster = connect(osd_timeout=1, observe=lambda verb, _, ok: probes.append(ok) if verb == "probe" else None)
    recovers(cluster)
    time.sleep(FRESH_SECONDS)
    probes.clear()
    with frozen(ceph, "osd"), ThreadPoolExecutor(8) as pool:
        results = [pool.submit(cluster.check) for _ in range(8)]
        assert all(isinstance(result.exception(10), errors.CephUnavailable) for result in results)
    assert probes == [False]
    time.sleep(BREAKER_SECONDS)
    recovers(cluster)


@real
@pytest.mark.timeout(60)
def test_no_monitor(connect: Connect, tmp_path: pathlib.Path, ceph: Any) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text(f"[global]\nmon host = 127.0.0.1:1\nkeyring = {tmp_path}/keyring\n")
    (tmp_path / "keyring").write_text(f"[client.{ceph.user}]\nkey = AQCWUYZnAAAAABAAW4D1J5pVdUCIMyA8hbDEcg==\n")
    with pytest.raises(errors.CephUnavailable, match=r"no (monitor|key|connection)"):
        connect(conffile=str(conf), connect_timeout=1).check()


@real
@pytest.mark.parametrize(
    ("otherwise", "says"),
    [
        ({"user": "stranger"}, "client.stranger"),
        ({"pool": "puddle"}, "no pool puddle"),
        ({"conffile": "/no"}, "/no"),
    ],
)
def test_wrong_settings_are_named(connect: Connect, otherwise: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.CephUnavailable, match=says):
        connect(**otherwise).check()


@real
def test_wrong_key(connect: Connect, real_cluster: Cluster, tmp_path: pathlib.Path, ceph: Any) -> None:
    wrong = "AQCWUYZnAAAAABAAW4D1J5pVdUCIMyA8hbDEcg=="
    (tmp_path / "keyring").write_text(f"[client.{ceph.user}]\n\tkey = {wrong}\n")
    lines = pathlib.Path(ceph.conf).read_text().splitlines()
    kept = [line for line in lines if line.replace("_", " ").split("=")[0].strip() != "keyring"]
    at = next(number for number, line in enumerate(kept) if line.strip() == "[global]")
    kept.insert(at + 1, f"keyring = {tmp_path}/keyring")
    (tmp_path / "ceph.conf").write_text("\n".join(kept) + "\n")
    with pytest.raises(errors.CephUnavailable, match="refuses the key") as raised:
        connect(conffile=str(tmp_path / "ceph.conf")).check()
    assert wrong not in str(raised.value)


@real
def test_blocklisted(ceph: Any, connect: Connect, name: str) -> None:
    cluster = connect(osd_timeout=3, call_timeout=10.0)
    cluster.create(name, GIB)
    assert cluster._here.connections[False]
    (address,) = cluster._here.connections[False].addresses
    command = ["ceph", "-c", str(ceph.conf), "osd", "blocklist", "add", address]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    deadline = time.monotonic() + 10
    while address in cluster._here.connections[False].addresses:
        cluster.create(name, GIB)
        assert time.monotonic() < deadline, "the blocklist never reached the OSD"
    assert cluster.trash(name)


@real
def test_a_connection_over_which_no_osd_answers_is_replaced(
    connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLACED_AFTER", 0.0)
    cluster = connect(osd_timeout=2, call_timeout=3.0)
    recovers(cluster)
    cluster.create(name, GIB)
    # As librados is when an OSD that has just started did not know it yet: it waits, and says nothing any more.
    cluster._here.connections[False].rados.conf_set("ms_blackhole_osd", "true")
    with pytest.raises(errors.CephTimeout):
        cluster.info(name)

    def answers() -> bool:
        try:
            cluster.check()
        except errors.Unavailable:
            return False
        return True

    wait(answers, timeout=30, what="the cluster to answer over a new connection")
    assert cluster.info(name).size_bytes == GIB
    assert cluster.trash(name)


@real
def test_half_made_image_is_made_anew(ceph: Any, real_cluster: Cluster, name: str) -> None:
    real_cluster.create(name, GIB)
    with opened(ceph) as ioctx:
        ioctx.remove_object(f"rbd_header.{real_cluster.info(name).id}")
    with pytest.raises(errors.ImageNotFound):
        real_cluster.info(name)
    real_cluster.create(name, 2 * GIB)
    assert real_cluster.info(name).size_bytes == 2 * GIB


@real
def test_purge_waits_for_watchers_and_refuses_parents(ceph: Any, real_cluster: Cluster, name: str) -> None:
    import rbd

    real_cluster.create(name, GIB)
    image_id = real_cluster.trash(name)
    assert image_id
    with opened(ceph) as ioctx:
        with rbd.Image(ioctx, image_id=image_id) as image:
            assert not real_cluster.purge(image_id)
            image.create_snap("s")
        with pytest.raises(errors.ImageBusy, match="snapshots"):
            real_cluster.purge(image_id)
        with rbd.Image(ioctx, image_id=image_id) as image:
            image.remove_snap("s")
    assert real_cluster.purge(image_id)


@real
def test_eight_threads(real_cluster: Cluster, name: str) -> None:
    def life(number: int) -> bool:
        for turn in range(5):
            image = f"{name}-{number}-{turn}"
            real_cluster.create(image, GIB)
            assert real_cluster.info(image).size_bytes == GIB
            image_id = real_cluster.trash(image)
            assert image_id
            assert real_cluster.purge(image_id)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(life, range(8)))
    assert not real_cluster.images(name)


@real
def test_after_fork(real_cluster: Cluster, name: str) -> None:
    real_cluster.create(name, GIB)
    child = os.fork()
    if not child:
        # Nothing of pytest may run on in the child, whatever happens.
        code = 1
        try:
            real_cluster.create(name, GIB)
            code = 0 if real_cluster.info(name).size_bytes == GIB else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.02)
    assert ended[1] == 0
    assert real_cluster.info(name).size_bytes == GIB


_DIES_WITH_A_CALL_IN_HAND = """
import sys
import time
from cinderlite import errors
from cinderlite.ceph.cluster import Cluster

cluster = Cluster(pool=sys.argv[1], conffile=sys.argv[2], user=sys.argv[3], connect_timeout=15, mon_timeout=15,
                  osd_timeout=60, call_timeout=2.0, threads=2)
ready = False
while not ready:
    try:
        cluster.check()
        ready = True
    except errors.CephUnavailable:
        time.sleep(0.1)
print("ready", flush=True)
sys.stdin.readline()
try:
    cluster.create(sys.argv[4], 1 << 30)
except errors.CephTimeout:
    print("timeout", flush=True)
"""


@real
def test_a_stuck_call_does_not_hold_up_the_exit(ceph: Any, name: str) -> None:
    command = [sys.executable, "-c", _DIES_WITH_A_CALL_IN_HAND, ceph.pool, str(ceph.conf), ceph.user, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        killer = threading.Timer(PATIENCE * 20, process.kill)
        killer.start()
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        with frozen(ceph, "osd"):
            out, _ = process.communicate("go\n", timeout=PATIENCE * 10)
        killer.cancel()
    assert out == "timeout\n"
    assert process.returncode == 0
