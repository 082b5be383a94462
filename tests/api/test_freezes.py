# SPDX-License-Identifier: Apache-2.0
"""Guests whose file systems keep still while a snapshot is taken, and are let go whatever happens."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from oslo_config import cfg

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import freezes
from cinderlite.db import models
from conftest import PROJECT, Client, configuration, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeGuest, FakeHypervisor


@pytest.fixture
def conf(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> cfg.ConfigOpts:
    """Guests are frozen, unless a test says otherwise."""
    return configuration(tmp_path, **({"guests__freeze_file_systems": True} | getattr(request, "param", {})))


class Killed(BaseException):
    """The process ends here."""


def attached(client: Client, hypervisor: FakeHypervisor, volume: str | None = None) -> tuple[str, FakeGuest]:
    """A volume in use, and the guest that has it, with an agent."""
    server = hypervisor.add_server("vm", PROJECT).id
    volume = volume or client.volume()["id"]
    answer = client.post(f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}})
    assert answer.status_code == 200, answer.text
    hypervisor.guests[server].agent = True
    return volume, hypervisor.guests[server]


def snapshot(client: Client, volume: str) -> str:
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
    assert made.status_code == 202, made.text
    return str(made.json["snapshot"]["id"])


def status(client: Client, which: str) -> str:
    return str(client.get(f"/v3/snapshots/{which}").json["snapshot"]["status"])


def known(world: World) -> list[str]:
    with world.db.read() as session:
        return list(session.scalars(sqlalchemy.select(models.Freeze.id)))


@pytest.fixture
def seen(cluster: FakeCluster, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each snapshot that was taken in Ceph: whether all guests were frozen then."""
    found: list[bool] = []
    really = cluster.snapshot

    def taken(*arguments: Any) -> None:
        found.append(all(guest.frozen for guest in hypervisor.guests.values()))
        really(*arguments)

    monkeypatch.setattr(cluster, "snapshot", taken)
    return found


@pytest.fixture
def whenever(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen right before a snapshot is taken in Ceph."""
    really = cluster.snapshot

    def arrange(work: Callable[[], object]) -> None:
        def taken(*arguments: Any) -> None:
            work()
            really(*arguments)

        monkeypatch.setattr(cluster, "snapshot", taken)

    return arrange


@pytest.mark.parametrize("conf", [{"guests__freeze_file_systems": False}], indirect=True)
def test_by_default_no_guest_is_frozen(client: Client, hypervisor: FakeHypervisor, seen: list[bool]) -> None:
    volume, guest = attached(client, hypervisor)
    assert status(client, snapshot(client, volume)) == "available"
    assert (seen, guest.freezes) == ([False], 0)


def test_a_guest_is_frozen_for_its_snapshot(
    client: Client, world: World, hypervisor: FakeHypervisor, seen: list[bool]
) -> None:
    volume, guest = attached(client, hypervisor)
    assert status(client, snapshot(client, volume)) == "available"
    assert (seen, guest.freezes, guest.frozen, known(world)) == ([True], 1, False, [])


def test_what_nobody_holds_has_nobody_to_freeze(client: Client, seen: list[bool]) -> None:
    assert status(client, snapshot(client, client.volume()["id"])) == "available"
    assert len(seen) == 1


def test_copies_and_backups_are_snapshots_too(
    client: Client, world: World, hypervisor: FakeHypervisor, seen: list[bool]
) -> None:
    volume, guest = attached(client, hypervisor)
    assert client.volume(source_volid=volume)["status"] == "available"
    assert (guest.freezes, guest.frozen) == (1, False)
    made = client.post("/v3/backups", {"backup": {"volume_id": volume, "force": True}})
    assert made.status_code == 202, made.text
    settle(world)
    assert (seen, guest.freezes, guest.frozen) == ([True], 2, False)


@pytest.mark.parametrize("agent", [None, False])
def test_without_an_agent_there_is_a_snapshot_all_the_same(
    client: Client, world: World, hypervisor: FakeHypervisor, agent: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    volume, guest = attached(client, hypervisor)
    guest.agent = agent
    assert status(client, snapshot(client, volume)) == "available"
    assert "no guest agent answers" in caplog.text
    assert (guest.freezes, known(world)) == (0, [])


def test_one_that_somebody_else_froze_stays_so(client: Client, world: World, hypervisor: FakeHypervisor) -> None:
    volume, guest = attached(client, hypervisor)
    guest.frozen = True
    assert status(client, snapshot(client, volume)) == "available"
    settle(world)
    assert (guest.frozen, known(world)) == (True, [])


@pytest.mark.parametrize("error", [errors.CephError("no"), errors.CephTimeout("the OSD does not answer")])
def test_it_is_thawed_when_the_snapshot_fails(
    client: Client,
    world: World,
    hypervisor: FakeHypervisor,
    whenever: Callable[[Callable[[], object]], None],
    error: errors.CinderliteError,
) -> None:
    volume, guest = attached(client, hypervisor)

    def fail() -> None:
        assert guest.frozen
        raise error

    whenever(fail)
    assert status(client, snapshot(client, volume)) in ("error", "creating")
    assert (guest.freezes, guest.frozen, known(world)) == (1, False, [])


def test_it_is_thawed_after_the_process_died(
    client: Client,
    world: World,
    hypervisor: FakeHypervisor,
    whenever: Callable[[Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, guest = attached(client, hypervisor)

    def die(*_: Any) -> None:
        raise Killed

    whenever(die)
    with monkeypatch.context() as patch:
        patch.setattr(freezes.LIFECYCLE, "run", die)  # Nor does a dead process thaw anything.
        with pytest.raises(Killed):
            snapshot(client, volume)
    monkeypatch.undo()
    assert (guest.frozen, len(known(world))) == (True, 1)
    with world.db.write() as session:  # Its leases lapse.
        for table in (models.Freeze, models.Snapshot):
            session.execute(sqlalchemy.update(table).values(lease_owner=None, lease_until=0.0))
    settle(world)
    assert (guest.frozen, known(world)) == (False, [])
    [made] = client.get("/v3/snapshots").json["snapshots"]
    assert made["status"] == "available"


def test_an_agent_that_answers_late_is_asked_again(
    client: Client, world: World, hypervisor: FakeHypervisor, whenever: Callable[[Callable[[], object]], None]
) -> None:
    volume, guest = attached(client, hypervisor)

    def fall_silent() -> None:
        guest.agent = False

    whenever(fall_silent)
    assert status(client, snapshot(client, volume)) == "available"
    settle(world)
    assert (guest.frozen, len(known(world))) == (True, 1)
    guest.agent = True
    settle(world)
    assert (guest.frozen, known(world)) == (False, [])


def test_a_freeze_without_an_answer_is_taken_back(
    client: Client, world: World, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, guest = attached(client, hypervisor)

    def late(_seconds: float) -> int:
        guest.frozen = True
        raise errors.GuestTimeout("vm", "its agent has no answer to guest-fsfreeze-freeze")

    monkeypatch.setattr(guest, "freeze", late)
    assert status(client, snapshot(client, volume)) == "available"
    assert (guest.frozen, known(world)) == (False, [])


def test_it_is_thawed_though_the_database_is_gone(
    client: Client,
    world: World,
    hypervisor: FakeHypervisor,
    whenever: Callable[[Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, guest = attached(client, hypervisor)

    def no_answer(*_: Any) -> None:
        raise errors.DatabaseUnavailable

    whenever(lambda: monkeypatch.setattr(freezes.LIFECYCLE, "run", no_answer))
    assert status(client, snapshot(client, volume)) == "available"
    assert (guest.freezes, guest.frozen, len(known(world))) == (1, False, 1)
    monkeypatch.undo()
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Freeze).values(lease_owner=None, lease_until=0.0))
    settle(world)
    assert known(world) == []


def test_a_guest_that_is_gone_needs_no_thaw(
    client: Client, world: World, hypervisor: FakeHypervisor, whenever: Callable[[Callable[[], object]], None]
) -> None:
    volume, guest = attached(client, hypervisor)

    def end() -> None:
        guest.gone = True

    whenever(end)
    assert status(client, snapshot(client, volume)) == "available"
    assert known(world) == []


@pytest.mark.parametrize("conf", [{"guests__freeze_timeout": 0.2}], indirect=True)
def test_nobody_stands_still_for_too_long(
    client: Client,
    world: World,
    hypervisor: FakeHypervisor,
    whenever: Callable[[Callable[[], object]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    volume, guest = attached(client, hypervisor)

    def take_long() -> None:
        assert guest.frozen
        deadline = time.monotonic() + 20
        while guest.frozen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not guest.frozen

    whenever(take_long)
    assert status(client, snapshot(client, volume)) == "available"
    assert "before its snapshot was there" in caplog.text
    assert known(world) == []


def test_snapshots_of_one_guest_wait_for_each_other(
    client: Client, world: World, hypervisor: FakeHypervisor, seen: list[bool]
) -> None:
    volume, guest = attached(client, hypervisor)
    with freezes.frozen(world, [volume]):
        other = threading.Thread(target=snapshot, args=(client, volume))
        other.start()
        time.sleep(0.1)
        assert (guest.frozen, seen) == (True, [])
    other.join(20)
    assert (seen, guest.freezes, guest.frozen) == ([True], 2, False)


@pytest.mark.parametrize("consistent", ["<is> True", "<is> False"])
def test_all_guests_of_a_group_keep_still(
    client: Client, admin: Client, world: World, hypervisor: FakeHypervisor, seen: list[bool], consistent: str
) -> None:
    body = {"group_type": {"name": "g", "group_specs": {"consistent_group_snapshot_enabled": consistent}}}
    group_type = admin.at("3.11").post("/v3/group_types", body).json["group_type"]["id"]
    kind = client.get("/v3/types/default").json["volume_type"]["id"]
    caller = client.at("3.60")
    body = {"group": {"group_type": group_type, "volume_types": [kind]}}
    group = caller.post("/v3/groups", body).json["group"]["id"]
    settle(world)
    guests = []
    for _ in range(2):
        volume = caller.volume(group_id=group, volume_type=kind)["id"]
        guests.append(attached(client, hypervisor, volume)[1])
    made = caller.post("/v3/group_snapshots", {"group_snapshot": {"group_id": group}})
    assert made.status_code == 202, made.text
    settle(world)
    found = caller.get(f"/v3/group_snapshots/{made.json['group_snapshot']['id']}").json["group_snapshot"]
    assert found["status"] == "available"
    assert seen == [True, True]
    assert ([guest.freezes for guest in guests], [guest.frozen for guest in guests]) == ([1, 1], [False, False])
    assert known(world) == []
