# SPDX-License-Identifier: Apache-2.0
"""Several hosts on one database: their clocks are minutes apart, none sees whether the others' processes live."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import sqlalchemy

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import attachments, leftovers, own_clients, reconcile, services, states, volumes
from cinderlite.db import clock, models
from cinderlite.jobs import Jobs
from conftest import cluster_of
from fakes_hypervisor import FakeHypervisor
from lab.process import wait

#: How far the first host's clock is from the second's, in seconds.
SKEWS = (-900.0, 0.0, 900.0)


class Hosts:
    """Whose machine, and whose clock, a thread is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._here = threading.local()
        real, utcnow = time.time, models.utcnow
        monkeypatch.setattr(states, "_machine", lambda: getattr(self._here, "name", "second"))
        monkeypatch.setattr(time, "time", lambda: real() + getattr(self._here, "skew", 0.0))
        monkeypatch.setattr(
            models, "utcnow", lambda: utcnow() + datetime.timedelta(seconds=getattr(self._here, "skew", 0.0))
        )

    @contextlib.contextmanager
    def first(self, skew: float = 0.0) -> Iterator[None]:
        """What is done in the block is done on the first host; all else on the second."""
        self._here.name, self._here.skew = "first", skew
        try:
            yield
        finally:
            self._here.name, self._here.skew = "second", 0.0


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(monkeypatch)


def begun(ctx: Context, lease: float, verb: str = "create") -> models.Volume:
    """A volume whose creation was accepted, and no more."""
    volume = models.Volume(
        id=models.new_id(), project_id="p", user_id="u", size=1, availability_zone="nova", host="testhost@ceph#ceph",
        volume_type_id=volumes.create(ctx, size=1).volume_type_id,
    )  # fmt: skip
    volumes.LIFECYCLE.start(volume, verb, lease, "req-x")
    with ctx.world.db.write() as session:
        session.add(volume)
    return volume


def now(world: World) -> float:
    with world.db.read() as session:
        return clock.read(session)


def row(world: World, volume_id: str) -> models.Volume:
    with world.db.read() as session:
        return session.get_one(models.Volume, volume_id)


@pytest.mark.parametrize("skew", SKEWS)
def test_the_work_of_a_dead_host_is_taken_over_when_its_lease_ends_and_not_before(
    ctx: Context, world: World, hosts: Hosts, skew: float
) -> None:
    with hosts.first(skew):
        kept, lapsing = begun(ctx, 60.0), begun(ctx, 0.3)
    wait(lambda: reconcile.finish(world) > 0, timeout=10, what="the other host's work to be taken over")
    assert row(world, lapsing.id).status == "available"
    assert cluster_of(world).info(lapsing.image).size_bytes == 2**30
    assert reconcile.finish(world) == 0
    assert row(world, kept.id).status == "creating"
    assert volumes.LIFECYCLE.claim(world, kept.id, 60.0) is None
    with world.db.write() as session:
        assert states.stop(session, models.Volume, kept.id)


@pytest.mark.parametrize("skew", SKEWS)
def test_a_try_that_one_host_put_off_is_due_for_the_other_as_soon(
    ctx: Context, world: World, hosts: Hosts, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_doubt(_name: str, _size: int) -> None:
        raise errors.CephTimeout("the OSD does not answer")

    monkeypatch.setattr(states, "RETRY_AFTER", 30.0)
    with hosts.first(skew), monkeypatch.context() as patched:
        patched.setattr(cluster_of(world), "create", in_doubt)
        volume = volumes.create(ctx, size=1)
    looked = now(world)
    assert 0.0 < reconcile.due_in(world, 60.0, looked) <= states.RETRY_AFTER
    assert reconcile.finish(world) == 0
    with world.db.write() as session:  # The time passes.
        session.execute(sqlalchemy.update(models.Volume).values(lease_until=looked + 0.001))
    wait(lambda: now(world) > looked + 0.001, timeout=10, what="the next try to be due")
    assert reconcile.due_in(world, 60.0, looked) < 1.0, "it became due after somebody looked"
    assert reconcile.due_in(world, 60.0, now(world)) == 60.0, "whoever looked now has seen it"
    assert reconcile.finish(world) == 1
    assert row(world, volume.id).status == "available"


def test_more_than_a_batch_of_lapsed_work_does_not_wait_for_the_next_pass(ctx: Context, world: World) -> None:
    world = dataclasses.replace(world, settings=dataclasses.replace(world.settings, batch=2))
    lapsed = [begun(ctx, 0.0).id for _ in range(7)]
    reconciler = reconcile.Reconciler(world, 3600.0)
    reconciler.start()
    try:
        wait(lambda: all(row(world, id_).status == "available" for id_ in lapsed), timeout=10, what="all of it")
    finally:
        reconciler.stop(10)


def test_long_work_that_waits_for_a_thread_is_in_nobodys_way(ctx: Context, world: World) -> None:
    """Neither in that of what is short, nor is the same pass made over and over for it."""
    jobs = Jobs(1)
    world = dataclasses.replace(world, jobs=jobs, settings=dataclasses.replace(world.settings, batch=2))
    ended, waiting = threading.Event(), [begun(ctx, 0.0, "fill").id for _ in range(5)]

    def work() -> None:
        ended.wait(60)

    assert jobs.start(work, lambda: True, 60.0)
    try:
        short = [begun(ctx, 0.0).id for _ in range(3)]
        world.wake.clear()
        while world.wake.is_set() or any(row(world, id_).status == "creating" for id_ in short):
            world.wake.clear()
            assert reconcile.finish(world) > 0, "nothing was done, and yet there is more to do"
        assert not set(volumes.LIFECYCLE.unfinished(world, 100)) & set(waiting)
    finally:
        ended.set()
    wait(lambda: jobs.room == 1, timeout=10, what="the thread to be free")
    assert len(set(volumes.LIFECYCLE.unfinished(world, 100)) & set(waiting)) == 1


def test_of_many_that_take_over_lapsed_work_exactly_one_gets_it(ctx: Context, world: World) -> None:
    threads, lapsed = 6, [begun(ctx, 0.0).id for _ in range(10)]
    gate = threading.Barrier(threads)
    wait(lambda: set(volumes.LIFECYCLE.unfinished(world, 100)) == set(lapsed), timeout=10, what="the leases to end")

    def take(volume_id: str) -> str | None:
        gate.wait(20)
        return volumes.LIFECYCLE.claim(world, volume_id, 60.0)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for volume_id in lapsed:
            taken = [future.result(30) for future in [pool.submit(take, volume_id) for _ in range(threads)]]
            [owner] = [one for one in taken if one is not None]
            assert row(world, volume_id).lease_owner == owner


class Slow:
    """A step that lasts until it is let go, and who is at it."""

    def __init__(self, step: states.Step) -> None:
        self.begun = 0
        self.go = threading.Event()
        self._step = step

    def __call__(self, world: World, volume: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
        self.begun += 1
        if self.begun == 1 and not self.go.wait(60):
            raise TimeoutError
        return self._step(world, volume, arguments)


@pytest.mark.parametrize("dies", [False, True])
def test_a_step_longer_than_its_lease_is_another_host_s_only_when_its_own_is_dead(
    ctx: Context, world: World, hosts: Hosts, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    slow = Slow(volumes.LIFECYCLE._steps["create"])
    monkeypatch.setitem(volumes.LIFECYCLE._steps, "create", slow)
    brief = dataclasses.replace(world.settings, lease=3.0)
    first = dataclasses.replace(world, settings=brief, jobs=Jobs(1))

    def create() -> models.Volume:
        with hosts.first():
            return volumes.create(dataclasses.replace(ctx, world=first), size=1)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(create)
        wait(lambda: slow.begun == 1, timeout=10, what="the step to begin")
        if dies:
            monkeypatch.setattr(first.jobs, "_renew", lambda _job: None)
            wait(lambda: reconcile.finish(world) == 1, timeout=10, what="the step to be taken over")
            [settled] = rows(world)
            assert settled.status == "available"
        else:
            watched = time.monotonic() + 4.5
            while time.monotonic() < watched:
                assert reconcile.finish(world) == 0
                time.sleep(0.05)
        slow.go.set()
        volume = made.result(30)
    first.jobs.stop(0)
    assert slow.begun == (2 if dies else 1)
    [found] = rows(world)
    assert (found.id, found.status, found.busy, found.lease_owner) == (volume.id, "available", 0, None)
    if dies:
        assert found.updated_at == settled.updated_at
    assert cluster_of(world).images("") == {volume.image}


def rows(world: World) -> list[models.Volume]:
    with world.db.read() as session:
        return list(session.scalars(sqlalchemy.select(models.Volume)))


@pytest.mark.parametrize("skew", SKEWS)
def test_what_hosts_tell_of_themselves_is_as_old_as_it_is(
    ctx: Context, world: World, hosts: Hosts, skew: float
) -> None:
    with hosts.first(skew):
        services.beat(world)
        own_clients.tell(world)
    assert all(services.is_up(ctx, one) for one in services.listed(ctx))
    with world.db.read() as session:
        ages = [clock.read(session) - one.seen_at for one in session.scalars(sqlalchemy.select(models.OwnClient))]
    assert all(0.0 <= age < 60.0 for age in ages)


@pytest.mark.parametrize("skew", SKEWS)
def test_how_long_a_server_has_a_volume_and_is_fenced_goes_by_no_host_s_clock(
    ctx: Context, world: World, hosts: Hosts, hypervisor: FakeHypervisor, skew: float
) -> None:
    server, volume = hypervisor.add_server("vm", ctx.project_id), volumes.create(ctx, size=1)
    with hosts.first(skew):
        made = attachments.attach(ctx, server, volume.id)
        leftovers.remember(world, made, volume, [])
    with world.db.read() as session:
        since = session.scalars(sqlalchemy.select(models.Attachment.attached_at)).one()
        until = session.scalars(sqlalchemy.select(models.Leftover.fenced_until)).one()
        moment = session.scalars(sqlalchemy.select(clock.utcnow())).one()
    assert since is not None
    assert 0.0 <= (moment - since).total_seconds() < 60.0
    assert until - now(world) == pytest.approx(world.settings.fence_for, abs=60.0)


@pytest.mark.parametrize("conf", [{"ceph__backend_host": "rbd"}], indirect=True)
def test_hosts_that_call_a_pool_the_same_share_what_is_there(ctx: Context, world: World) -> None:
    other = dataclasses.replace(world, settings=dataclasses.replace(world.settings, host="other"))
    volume = volumes.create(ctx, size=1)
    assert row(world, volume.id).host == "rbd@ceph#ceph"
    for one in (world, other):
        services.beat(one)
    listed = services.listed(ctx)
    assert [one.host for one in listed if one.binary == services.VOLUME] == ["rbd@ceph"]
    assert [one.host for one in listed if one.binary == services.SCHEDULER] == ["other", "testhost"]
    assert [services.is_here(ctx, one) for one in listed if one.host != "other"] == [True] * (len(listed) - 2)
    services.disable(ctx, "rbd@ceph", services.VOLUME)
    with world.db.read() as session:
        assert services.closed(session, other) == {"ceph": "disabled"}


def test_the_database_s_clock_is_that_of_utc(world: World) -> None:
    with world.db.read() as session:
        seconds, moment = clock.read(session), session.scalars(sqlalchemy.select(clock.utcnow())).one()
    assert seconds == pytest.approx(time.time(), abs=60)
    assert abs(moment - models.utcnow()) < datetime.timedelta(seconds=60)
