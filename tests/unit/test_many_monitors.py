# SPDX-License-Identifier: Apache-2.0
"""Two hundred VMs, each behind a monitor: who is asked, who is left alone, and how many connections there are at a time.

The monitors are sockets in this process that say as little as QEMU must; what QEMU really does is for the contract.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backends.monitors import Crowd
from cinderlite import errors
from cinderlite.guests import RbdDisk, qmp
from cinderlite.guests.qmp import QmpHypervisor

MANY, HUNG = 200, 12
#: Seconds that a monitor may take to greet: far more than one that answers does on the busiest machine.
GREETS_WITHIN = 30.0
#: Where one is to be silent.
SHORT = {"connect_timeout": 2.0, "command_timeout": 2.0}


@pytest.fixture
def crowd(tmp_path: pathlib.Path) -> Iterator[Crowd]:
    made = Crowd(tmp_path, MANY)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def hypervisor(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QmpHypervisor]:
    with contextlib.closing(hypervisor_of(crowd, tmp_path_factory.mktemp("locks"))) as made:
        yield made


def hypervisor_of(crowd: Crowd, locks: pathlib.Path, **more: Any) -> QmpHypervisor:
    chosen = {"connect_timeout": GREETS_WITHIN, "command_timeout": GREETS_WITHIN} | more
    return QmpHypervisor(crowd.directory, host="h", locks=locks, **chosen)


def disk() -> RbdDisk:
    return RbdDisk(str(uuid.uuid4()), "volumes", "image", [("127.0.0.1", 3300)], "user", None)


def descriptors() -> int:
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


def test_one_where_something_happens_while_we_connect_is_heard(crowd: Crowd, hypervisor: QmpHypervisor) -> None:
    peer = crowd.peers[0]
    peer.hasty = True
    assert hypervisor.find(peer.id).disks() == frozenset()
    assert "qom-list" in peer.said


def test_a_list_asks_each_once_and_only_some_at_a_time(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = descriptors()
    with (
        contextlib.closing(hypervisor_of(crowd, tmp_path_factory.mktemp("locks"), refresh=3600.0)) as hypervisor,
        ThreadPoolExecutor(8) as pool,
    ):
        lists = list(pool.map(lambda _: hypervisor.servers(), range(8)))
        assert all([one.status for one in found] == ["ACTIVE"] * MANY for found in lists)
        assert {peer.connections for peer in crowd.peers} == {1}
        assert crowd.peak <= qmp.ASKED_AT_A_TIME
        deadline = time.monotonic() + 10
        while descriptors() > before + 10:  # The loop, and what the threads keep; not one for each.
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_attaching_to_one_touches_no_other(crowd: Crowd, hypervisor: QmpHypervisor) -> None:
    hypervisor.servers()
    crowd.forget()
    chosen = crowd.peers[77]
    hypervisor.find(chosen.id, fresh=False).attach(disk(), ())
    assert crowd.asked() == {chosen.id}
    assert "device_add" in chosen.said


def test_a_server_that_its_file_names_is_found_without_asking_the_others(
    crowd: Crowd, hypervisor: QmpHypervisor
) -> None:
    """As right after the start of the service, when it knows nobody."""
    chosen = crowd.peers[77]
    chosen.write_owner()
    assert hypervisor.find(chosen.id, fresh=False).disks() == frozenset()
    assert crowd.asked() == {chosen.id}
    with pytest.raises(errors.ServerNotFound):
        hypervisor.find(str(uuid.uuid4()))


def test_those_that_hang_hold_up_nobody(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> None:
    locks = tmp_path_factory.mktemp("locks")
    with contextlib.closing(hypervisor_of(crowd, locks, connect_timeout=1.0)) as hypervisor:
        _hang(crowd, hypervisor)


def _hang(crowd: Crowd, hypervisor: QmpHypervisor) -> None:
    hung = crowd.peers[:HUNG]
    for peer in crowd.peers:
        peer.write_owner()
        peer.silent = peer in hung
    deadline = time.monotonic() + 30
    statuses = {one.id: one.status for one in hypervisor.servers()}
    assert len(statuses) == MANY
    while {peer.id for peer in hung} != {one for one, status in statuses.items() if status == "ERROR"}:
        assert time.monotonic() < deadline  # On a busy machine the first list may not get to everybody.
        statuses = {one.id: one.status for one in hypervisor.servers()}
    assert sorted(set(statuses.values())) == ["ACTIVE", "ERROR"]
    hypervisor.find(crowd.peers[-1].id).attach(disk(), ())
    crowd.forget()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: hypervisor.servers(), range(4)))
    assert crowd.peak <= qmp.ASKED_AT_A_TIME + qmp.SILENT_AT_A_TIME


# -- one that is silent is left alone


def test_after_a_silence_all_are_refused_at_once_and_then_one_tries(
    crowd: Crowd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    locks = tmp_path_factory.mktemp("locks")
    with contextlib.closing(hypervisor_of(crowd, locks, rest=3600.0, **SHORT)) as hypervisor:
        chosen, other = crowd.peers[0], crowd.peers[1]
        for peer in (chosen, other):
            peer.write_owner()
        guest = hypervisor.find(chosen.id)
        chosen.deaf = frozenset({"blockdev-add"})
        with pytest.raises(errors.GuestTimeout):
            guest.attach(disk(), ())
        crowd.forget()
        for _ in range(3):
            with pytest.raises(errors.GuestUnreachable, match="left alone"):
                guest.disks()
            hypervisor.find(other.id).disks()
        assert crowd.asked() == {other.id}
        [machine] = [one for one in hypervisor._machines.values() if one.id == chosen.id]
        machine.rests_until = 0.0  # The time is over, and it is silent still: only one finds that out.
        chosen.silent = True
        with ThreadPoolExecutor(6) as pool:
            ends = [pool.submit(guest.disks) for _ in range(6)]
        assert {type(one.exception()) for one in ends} == {errors.GuestUnreachable, monitor_silence()}
        assert chosen.connections == 1
        chosen.silent, chosen.deaf = False, frozenset()
        machine.rests_until = 0.0
        assert guest.disks() == frozenset()
        assert guest.disks() == frozenset()


def monitor_silence() -> type[Exception]:
    from cinderlite.guests.monitor import NoGreeting

    return NoGreeting


def test_to_wait_for_ones_turn_is_no_silence(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> None:
    locks = tmp_path_factory.mktemp("locks")
    with (
        contextlib.closing(hypervisor_of(crowd, locks, rest=3600.0, **SHORT)) as mine,
        contextlib.closing(hypervisor_of(crowd, locks, rest=3600.0, **SHORT)) as theirs,
        ThreadPoolExecutor(1) as pool,
    ):
        chosen = crowd.peers[0]
        chosen.write_owner()
        first, second = mine.find(chosen.id), theirs.find(chosen.id)
        chosen.deaf = frozenset({"query-uuid"})
        holding = pool.submit(first.disks)
        deadline = time.monotonic() + 10
        while "query-uuid" not in chosen.said[2:] and not holding.done():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        with pytest.raises(errors.Unavailable):
            second.disks()
        assert isinstance(holding.exception(), errors.GuestTimeout)
        chosen.deaf = frozenset()
        [machine] = [one for one in theirs._machines.values() if one.id == chosen.id]
        if not machine.silent:  # Unless its own try was answered as little.
            assert second.disks() == frozenset()
