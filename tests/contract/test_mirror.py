# SPDX-License-Identifier: Apache-2.0
"""A disk that goes over to another image under a running guest, tried on the fake and on QEMU."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import pytest

from cinderlite import errors
from cinderlite.guests import ABSENT, COPYING, EQUAL, MOVED, NONE, Guest, RbdDisk, disks
from contract.stages import RealStage, Stage
from lab.process import wait

SOON = 10.0


class Stop(Exception):
    """Said instead of going on."""


def stop() -> None:
    raise Stop


def go_on() -> None:
    """Nothing has to be written down."""


def begin(guest: Guest, target: RbdDisk) -> None:
    """Copy as slowly as can be."""
    with contextlib.suppress(Stop):
        guest.mirror(target, 1, stop)


def until_equal(guest: Guest, target: RbdDisk) -> None:
    """Copy, and let the guest wait then."""

    def equal() -> bool:
        try:
            return guest.mirror(target, 0, stop).phase != COPYING
        except Stop:
            return True

    wait(equal, timeout=20, what="both images to be equal")
    assert guest.mirrored(target).phase == EQUAL


def until_moved(guest: Guest, target: RbdDisk) -> None:
    """Copy, and go on with the other image."""
    wait(lambda: guest.mirror(target, 0, go_on).phase == MOVED, timeout=20, what="the other image to be used")


@contextlib.contextmanager
def plugged(stage: Stage, disk: RbdDisk) -> Iterator[Guest]:
    """A guest with a disk, which leaves nothing behind."""
    guest, before = stage.hypervisor.find(stage.linux()), stage.holdings(stage.linux())
    guest.attach(dataclasses.replace(disk, limits={"write_bytes_sec": 10**9}), ())
    yield guest
    guest.detach(disk.volume_id, SOON)
    assert stage.holdings(stage.linux()) == before


@pytest.mark.parametrize("locked", [False, True])
def test_a_disk_goes_over_with_all_it_holds_and_back(stage: Stage, *, locked: bool) -> None:
    disk = stage.locked() if locked else stage.disk()
    linux = stage.linux()
    with plugged(stage, disk) as guest:
        stage.write(linux, disk, "before")
        target = stage.target(disk)
        assert guest.mirrored(target).phase == NONE
        until_equal(guest, target)
        guest.pivot(target)
        guest.pivot(target)
        assert guest.mirrored(target).phase == guest.mirror(target, 0, stop).phase == MOVED
        assert stage.content(target) == stage.content(disk)
        former = stage.content(disk)
        stage.write(linux, disk, "after")
        assert stage.content(disk) == former != stage.content(target)
        with pytest.raises(errors.GuestRefused):
            guest.unmirror(target)
        held = stage.holdings(linux)
        # It is where it was before: what it had there is written over.
        until_moved(guest, disk)
        guest.pivot(disk)
        assert stage.content(disk) == stage.content(target)
        if isinstance(stage, RealStage):
            limits = stage.guests[linux].qmp(
                "qom-get", path=f"/objects/{disks.group(disk.volume_id)}", property="limits"
            )
            assert limits["bps-write"] == 10**9
            assert len(stage.guests[linux].holdings()["nodes"]) == len(dict(held)["nodes"])  # type: ignore[call-overload]
            assert stage.ceph.watchers(disk.image)
        guest.attach(disk, ())


def test_what_is_broken_off_leaves_the_disk_as_it_was(stage: Stage) -> None:
    disk, linux = stage.disk(), stage.linux()
    with plugged(stage, disk) as guest:
        held, target = stage.holdings(linux), stage.target(disk)
        guest.unmirror(target)
        begin(guest, target)
        guest.unmirror(target)
        assert stage.holdings(linux) == held
        until_equal(guest, target)
        guest.unmirror(target)
        assert stage.holdings(linux) == held
        stage.write(linux, disk, "more")
        with pytest.raises(errors.GuestRefused):
            guest.pivot(target)
        assert guest.mirrored(target).phase == NONE


def test_a_target_that_does_not_fit_is_refused(stage: Stage) -> None:
    disk, linux = stage.disk(), stage.linux()
    with plugged(stage, disk) as guest:
        held = stage.holdings(linux)
        with pytest.raises(errors.GuestRefused, match="No such file"):
            guest.mirror(stage.target(disk, exists=False), 0, stop)
        assert stage.holdings(linux) == held
        target = stage.target(disk, mib=32)
        with pytest.raises(errors.GuestRefused, match="different sizes"):
            until_equal(guest, target)
        guest.unmirror(target)
        assert stage.holdings(linux) == held


def test_a_detach_ends_it(stage: Stage) -> None:
    disk = stage.disk()
    with plugged(stage, disk) as guest:
        begin(guest, stage.target(disk))


def test_nothing_is_copied_where_there_is_no_disk_or_no_guest(stage: Stage) -> None:
    bare, disk = stage.bare(1), stage.disk()
    guest, target = stage.hypervisor.find(bare), stage.target(disk)
    assert guest.mirrored(target).phase == ABSENT
    with pytest.raises(errors.GuestRefused):
        guest.mirror(target, 0, stop)
    guest.pivot(target)
    guest.unmirror(target)
    guest.attach(disk, ())
    begin(guest, target)
    stage.kill(bare)
    for ask in (guest.mirrored, guest.pivot, guest.unmirror, lambda one: guest.mirror(one, 0, stop)):
        with pytest.raises(errors.GuestGone):
            ask(target)


@pytest.mark.real
def test_who_died_at_any_moment_is_followed_by_another(real_stage: RealStage) -> None:
    disk, linux = real_stage.disk(), real_stage.guests[real_stage.linux()]
    with plugged(real_stage, disk) as guest:
        target = real_stage.target(disk)
        present = disks.rbd_node(disk)
        # The image was opened, and no more; then it was copied to, and told to complete.
        for command in list(disks.mirror(target, present, 0))[:2]:
            linux.qmp(command.name, **command.arguments)
        begin(guest, target)
        job = disks.job(disk.volume_id)
        linux.qmp("block-job-set-speed", device=job, speed=0)
        wait(lambda: linux.qmp("query-jobs")[0]["status"] == "ready", timeout=10, what="the job to be ready")
        linux.qmp("job-complete", id=job)
        # Whoever follows a process that died comes later than that.
        wait(lambda: linux.qmp("query-jobs")[0]["status"] != "ready", timeout=10, what="the job to complete")
        until_equal(guest, target)
        linux.qmp("job-finalize", id=job)
        assert guest.mirrored(target).phase == MOVED
        guest.pivot(target)
        assert not real_stage.ceph.watchers(disk.image)


def test_what_is_written_while_both_are_equal_waits_and_then_is_where_it_belongs(stage: Stage) -> None:
    disk, linux = stage.disk(), stage.linux()
    with plugged(stage, disk) as guest:
        stage.write(linux, disk, "before")
        target = stage.target(disk)
        for word, end in (("stays", guest.unmirror), ("goes", guest.pivot)):
            until_equal(guest, target)
            stored = stage.begin_write(linux, disk, word)
            time.sleep(0.5)
            assert not stored()
            both = stage.content(disk)
            assert stage.content(target) == both
            end(target)
            wait(stored, timeout=10, what="what was written to be stored")
            changed = stage.content(disk) != both, stage.content(target) != both
            assert changed == (word == "stays", word == "goes")
