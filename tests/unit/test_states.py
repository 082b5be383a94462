# SPDX-License-Identifier: Apache-2.0
"""The two commits around a step: who wins, what a dead process leaves, what an unknown end becomes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import threading
import time
from typing import Any

import pytest
from sqlalchemy import func, select

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import services, states, types, volumes
from cinderlite.db import models
from cinderlite.jobs import Jobs
from conftest import cluster_of, settle
from fakes_cluster import FakeCluster
from lab.process import wait


def row(world: World, volume_id: str) -> models.Volume:
    with world.db.read() as session:
        return session.get_one(models.Volume, volume_id)


def test_of_eight_that_delete_one_volume_exactly_one_wins(ctx: Context) -> None:
    volume = volumes.create(ctx, size=1)
    gate = threading.Barrier(8)

    def delete() -> str:
        gate.wait(10)
        try:
            volumes.delete(ctx, volume)
        except (errors.InvalidVolume, errors.VolumeNotFound) as error:
            return type(error).__name__
        return "won"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ends = [future.result() for future in [pool.submit(delete) for _ in range(8)]]
    assert ends.count("won") == 1


def test_a_lease_of_a_living_process_is_respected_and_of_a_dead_one_taken(ctx: Context, world: World) -> None:
    def begin(owner_of_other: Any = None) -> str:
        volume = models.Volume(
            id=models.new_id(), project_id="p", user_id="u", size=1, availability_zone="nova", host="testhost@ceph#ceph",
            volume_type_id=volumes.create(ctx, size=1).volume_type_id,
        )  # fmt: skip
        volumes.LIFECYCLE.start(volume, "create", 60, "req-x")
        if owner_of_other:
            volume.lease_owner = owner_of_other
        with world.db.write() as session:
            session.add(volume)
        return volume.id

    mine = begin()
    assert mine not in volumes.LIFECYCLE.unfinished(world, 100)
    assert volumes.LIFECYCLE.claim(world, mine, 60) is None

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_owner, args=(queue,))
    process.start()
    dead = queue.get(timeout=30)
    process.join(30)
    orphan = begin(dead)
    assert orphan in volumes.LIFECYCLE.unfinished(world, 100)
    settle(world)
    assert row(world, orphan).status == "available"
    assert cluster_of(world).info(f"volume-{orphan}").size_bytes == 2**30
    assert row(world, mine).status == "creating"


def _owner(queue: Any) -> None:
    queue.put(states.new_owner())


def test_a_lease_of_another_machine_counts_until_it_lapses() -> None:
    machine, rest = states.new_owner().split("/", 1)
    assert not states.owner_is_dead(f"{machine}x/{rest}")
    assert not states.owner_is_dead(f"{machine}/{rest}")
    assert states.owner_is_dead(f"{machine}/another-boot/{rest.split('/', 1)[1]}")


def test_a_straggler_does_not_settle_what_another_took_over(ctx: Context, world: World) -> None:
    volume = models.Volume(
        id=models.new_id(), project_id="p", user_id="u", size=1, availability_zone="nova", host="testhost@ceph#ceph",
        volume_type_id=volumes.create(ctx, size=1).volume_type_id,
    )  # fmt: skip
    slow = volumes.LIFECYCLE.start(volume, "create", 60, "req-x")
    with world.db.write() as session:
        session.add(volume)
        session.flush()
        volume.lease_until = time.time() - 1
    quick = volumes.LIFECYCLE.claim(world, volume.id, 60)
    assert quick is not None
    assert volumes.LIFECYCLE.run(world, volume.id, slow).word == "done"
    assert row(world, volume.id).status == "creating"
    volumes.LIFECYCLE.run(world, volume.id, quick)
    assert row(world, volume.id).status == "available"


def test_an_unknown_end_is_tried_again_until_it_is_known(
    ctx: Context, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(cluster_of(world), "create", _in_doubt)
        volume = volumes.create(ctx, size=1)
        now = row(world, volume.id)
        assert (now.status, now.busy) == ("creating", 1)
        assert now.reason is not None
        settle(world)
        assert row(world, volume.id).status == "creating"
    settle(world)
    now = row(world, volume.id)
    assert (now.status, now.busy, now.intent, now.lease_owner) == ("available", 0, None, None)


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_nobody_tries_again_before_a_call_that_was_given_up_has_ended(
    ctx: Context, world: World, cluster: FakeCluster, told_to_stop: bool
) -> None:
    cluster.stuck = True
    volume = volumes.create(ctx, size=1)
    now = row(world, volume.id)
    assert (now.status, now.busy) == ("creating", 1)
    assert "stuck" in (now.reason or "")
    with world.db.write() as session:
        volumes.LIFECYCLE.hasten(session)
    assert volume.id not in volumes.LIFECYCLE.unfinished(world, 100)
    assert volumes.LIFECYCLE.claim(world, volume.id, 60) is None
    if told_to_stop:
        with world.db.write() as session:
            assert states.stop(session, models.Volume, volume.id)
        assert volumes.LIFECYCLE.claim(world, volume.id, 60) is None
    cluster.release()
    assert row(world, volume.id).lease_owner is None
    settle(world)
    assert row(world, volume.id).status == "available"


def test_a_lease_is_renewed_until_the_call_that_was_given_up_has_ended(
    ctx: Context, world: World, cluster: FakeCluster
) -> None:
    brief = dataclasses.replace(world, settings=dataclasses.replace(world.settings, lease=1.0), jobs=Jobs(1))
    cluster.stuck = True
    volume = volumes.create(dataclasses.replace(ctx, world=brief), size=1)
    until = row(world, volume.id).lease_until
    deadline = time.monotonic() + 30
    while row(world, volume.id).lease_until <= until:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cluster.release()
    wait(lambda: row(world, volume.id).lease_owner is None, timeout=10, what="the lease to be given back")
    brief.jobs.stop(0)


def _in_doubt(_name: str, _size: int) -> None:
    raise errors.CephTimeout("the OSD does not answer")


def test_a_machine_refuses_verbs_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="no move"):
        volumes.LIFECYCLE.step("explode")
    with pytest.raises(ValueError, match="unknown verbs"):
        states.Machine(models.Volume, states.Move("a", frozenset({"x"}), "y", "z", "x", doubt="b"))


def test_an_image_that_cannot_leave_the_trash_yet_is_not_forgotten(
    ctx: Context, world: World, cluster: FakeCluster
) -> None:
    volume = volumes.create(ctx, size=1)
    image_id = cluster.info(volume.image).id
    cluster.children.add(image_id)
    volumes.delete(ctx, volume)
    settle(world)
    now = row(world, volume.id)
    assert (now.deleted, now.busy, now.status) == (True, 1, "deleted")
    assert cluster.trashed() == [(image_id, volume.image)]
    cluster.children.clear()
    settle(world)
    assert row(world, volume.id).busy == 0
    assert cluster.trashed() == []


def test_two_processes_that_start_at_once_share_the_default_type(world: World) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(services.beat, world) for _ in range(4)]:
            future.result()
        for future in [pool.submit(types.ensure_default, world) for _ in range(4)]:
            future.result()
    with world.db.read() as session:
        assert session.scalar(select(func.count()).select_from(models.VolumeType)) == 1
        assert session.scalar(select(func.count()).select_from(models.Service)) == 3
