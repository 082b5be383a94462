# SPDX-License-Identifier: Apache-2.0
"""Clones of clones are made whole behind everybody's back, and nothing waits for that or is refused because of it."""

from __future__ import annotations

import dataclasses
import logging
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
from cinderlite.core import flattens, reconcile
from cinderlite.db import models
from cinderlite.jobs import Jobs
from conftest import PROJECT, Client, cluster_of, configuration, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor

LIMIT = 2
FAST = "testhost@fast#fast"


@pytest.fixture
def conf(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> cfg.ConfigOpts:
    """A small limit, unless a test says otherwise."""
    return configuration(tmp_path, **({"ceph__rbd_max_clone_depth": LIMIT} | getattr(request, "param", {})))


class Killed(BaseException):
    """The process ends here."""


def image(volume: str) -> str:
    return f"volume-{volume}"


def show(client: Client, volume: str) -> dict[str, Any]:
    return dict(client.get(f"/v3/volumes/{volume}").json["volume"])


def chain(client: Client, clones: int) -> str:
    """The last of so many volumes, each cloned from the one before."""
    last = client.volume()["id"]
    for _ in range(clones):
        last = client.volume(source_volid=last)["id"]
    return str(last)


def rows(world: World) -> list[models.Flatten]:
    with world.db.read() as session:
        return list(session.scalars(sqlalchemy.select(models.Flatten)))


def depth_known(world: World, volume: str) -> int:
    with world.db.read() as session:
        return session.get_one(models.Volume, volume).clone_depth


def as_others_see_it(cluster: FakeCluster, then: Callable[[], Any]) -> list[Any]:
    """Have something happen once while an image is made whole, with that client to be seen as in another process."""
    ends: list[Any] = []

    def meanwhile(name: str) -> None:
        if not ends:
            cluster.watchers[name] = sorted(cluster.addresses)
            ends.append(None)
            ends[0] = then()
            cluster.watchers.pop(name)

    cluster.meanwhile = meanwhile
    return ends


def test_a_clone_beyond_the_limit_is_used_at_once_and_made_whole_later(
    client: Client, world: World, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    last = chain(client, LIMIT)
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": last}}).json["snapshot"]["id"]
    first, second = client.volume(source_volid=last)["id"], client.volume(snapshot_id=snapshot)["id"]
    for one in (first, second):
        assert show(client, one)["status"] == "available"
        assert cluster.depth(image(one), 9) == LIMIT + 1
    before = show(client, first)
    reconcile.once(world)
    told = client.get("/metrics").text
    settle(world)
    assert [cluster.depth(image(one), 9) for one in (first, second, last)] == [0, 0, LIMIT]
    assert show(client, first) == before
    assert (depth_known(world, first), depth_known(world, second), rows(world)) == (0, 0, [])
    assert f"volume {first}: its image is being made whole" in caplog.text
    assert 'cinderlite_flattens_waiting{backend="ceph"} 2.0' in told
    assert "cinderlite_flattens_running 0.0" in told
    assert "cinderlite_flatten_objects_left 0.0" in told


def test_what_is_within_the_limit_is_left(client: Client, world: World, cluster: FakeCluster) -> None:
    last = chain(client, LIMIT)
    settle(world)
    assert cluster.depth(image(last), 9) == LIMIT
    assert rows(world) == []


@pytest.mark.parametrize("conf", [{"ceph__rbd_max_clone_depth": 0}], indirect=True)
def test_with_no_depth_every_clone_is_made_whole(client: Client, world: World, cluster: FakeCluster) -> None:
    last = chain(client, 2)
    assert cluster.depth(image(last), 9) == 2
    settle(world)
    assert cluster.parents == {}


def test_nothing_is_copied_when_an_image_below_was_made_whole(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle = client.volume(source_volid=client.volume()["id"])["id"]
    last = client.volume(source_volid=client.volume(source_volid=middle)["id"])["id"]
    cluster.flatten(image(middle), lambda _clients: None, lambda _done, _total: None)
    monkeypatch.setattr(cluster, "flatten", None)
    settle(world)
    assert (cluster.depth(image(last), 9), depth_known(world, last)) == (LIMIT, LIMIT)
    assert rows(world) == []


ACTIONS: dict[str, Callable[[Client, str, str], Any]] = {
    "delete": lambda client, volume, _: client.delete(f"/v3/volumes/{volume}"),
    "snapshot": lambda client, volume, _: client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}),
    "extend": lambda client, volume, _: client.post(f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 2}}),
    "clone": lambda client, volume, _: client.post("/v3/volumes", {"volume": {"size": 1, "source_volid": volume}}),
    "attach": lambda client, volume, server: client.post(
        f"/v2.1/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}}
    ),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_refused_meanwhile(
    client: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, action: str
) -> None:
    server = hypervisor.add_server("vm", PROJECT).id
    last = chain(client, LIMIT + 1)
    ends = as_others_see_it(cluster, lambda: ACTIONS[action](client, last, server))
    settle(world, 5)
    assert ends[0].status_code in (200, 202), ends[0].text
    assert rows(world) == []
    if action == "delete":
        assert client.get(f"/v3/volumes/{last}").status_code == 404
        assert cluster.bin == {}
        return
    assert cluster.depth(image(last), 9) == 0
    after = show(client, last)
    assert after["status"] == ("in-use" if action == "attach" else "available")
    assert after["size"] == (2 if action == "extend" else 1)


def test_a_server_that_is_gone_gives_its_volume_back_meanwhile(
    client: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm", PROJECT).id
    last = chain(client, LIMIT + 1)
    assert ACTIONS["attach"](client, last, server).status_code == 200
    hypervisor.guests[server].gone = True

    def status_later() -> str:
        settle(world)
        return str(show(client, last)["status"])

    ends = as_others_see_it(cluster, status_later)
    flattens.begin(world)
    assert ends == ["available"]


def test_an_attachment_of_another_service_can_be_deleted_meanwhile(
    client: Client, world: World, cluster: FakeCluster
) -> None:
    last = chain(client, LIMIT + 1)
    body = {"instance_uuid": models.new_id(), "volume_uuid": last, "connector": {"host": "h", "mode": "rw"}}
    made = client.at("3.44").post("/v3/attachments", {"attachment": body})
    assert made.status_code == 200, made.text
    path = f"/v3/attachments/{made.json['attachment']['id']}"
    with world.db.write() as session:  # Nova has connected it: the image is begun to be made whole before that.
        session.execute(sqlalchemy.update(models.Volume).where(models.Volume.id == last).values(status="in-use"))
    ends = as_others_see_it(cluster, lambda: client.at("3.44").delete(path))
    flattens.begin(world)
    assert ends[0].status_code == 200, ends[0].text


def test_who_really_has_the_image_open_still_counts(
    client: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm", PROJECT).id
    last = chain(client, LIMIT + 1)

    def both() -> Any:
        cluster.watchers[image(last)].append("192.0.2.99:0/1")
        return [ACTIONS[action](client, last, server).status_code for action in ("delete", "attach")]

    ends = as_others_see_it(cluster, both)
    flattens.begin(world)
    assert ends[0] == [400, 400]


@pytest.mark.parametrize("moment", ["depth", "flatten", "meanwhile"])
def test_one_that_was_killed_is_gone_on_with(
    client: Client, world: World, cluster: FakeCluster, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = chain(client, LIMIT + 1)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(cluster, moment, die)
        with pytest.raises(Killed):
            reconcile.once(world)
    [row] = rows(world)
    assert row.lease_owner is not None
    assert show(client, last)["status"] == "available"
    reconcile.once(world)
    assert cluster.depth(image(last), 9) == LIMIT + 1  # Its process lives, as far as anybody knows.
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Flatten).values(lease_until=0.0))
    reconcile.once(world)
    assert cluster.depth(image(last), 9) == 0
    assert (rows(world), depth_known(world, last)) == ([], 0)


def test_the_watch_of_one_that_was_killed_is_nobodys_either(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = chain(client, LIMIT + 1)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "meanwhile", die)
        with pytest.raises(Killed):
            reconcile.once(world)
    cluster.watchers[image(last)] = sorted(cluster.addresses)  # It lapses after a while.
    cluster.addresses = frozenset({"192.0.2.1:0/2"})
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Flatten).values(lease_until=0.0))
    ends = []
    cluster.meanwhile = lambda _name: ends.append(client.delete(f"/v3/volumes/{last}").status_code)
    reconcile.once(world)
    assert ends[0] == 202


def test_one_that_was_killed_before_it_was_settled_copies_nothing_twice(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = chain(client, LIMIT + 1)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(flattens.LIFECYCLE, "_settle", die)
        with pytest.raises(Killed):
            reconcile.once(world)
    monkeypatch.setattr(cluster, "flatten", None)
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Flatten).values(lease_until=0.0))
    reconcile.once(world)
    assert (rows(world), depth_known(world, last)) == ([], 0)


def test_what_ceph_refuses_is_tried_again_later(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = chain(client, LIMIT + 1)

    def full(*_: Any) -> None:
        raise errors.CephError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "flatten", full)
        settle(world)
    [row] = rows(world)
    assert row.lease_owner is None
    assert "no space left" in (row.reason or "")
    assert (show(client, last)["status"], client.at("3.3").get("/v3/messages").json) == ("available", {"messages": []})
    settle(world)
    assert cluster.depth(image(last), 9) == 0


def test_a_volume_that_is_at_work_comes_later(client: Client, world: World, cluster: FakeCluster) -> None:
    last = chain(client, LIMIT + 1)
    change = sqlalchemy.update(models.Volume).where(models.Volume.id == last)
    with world.db.write() as session:
        session.execute(change.values(busy=1, intent={"verb": "upload"}, lease_until=9e9))
    settle(world)
    assert rows(world) == []
    with world.db.write() as session:  # It was begun just before.
        row = models.Flatten(id=last)
        flattens.LIFECYCLE.start(row, "flatten", 0.0, "flatten")
        session.add(row)
    reconcile.once(world)
    assert cluster.depth(image(last), 9) == LIMIT + 1
    with world.db.write() as session:
        session.execute(change.values(busy=0, intent=None, lease_until=0.0))
    settle(world)
    assert cluster.depth(image(last), 9) == 0


def test_a_guest_that_does_not_answer_is_not_asked_to_do_it(
    client: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm", PROJECT).id
    last = chain(client, LIMIT + 1)
    assert ACTIONS["attach"](client, last, server).status_code == 200
    hypervisor.guests[server].silent = True
    settle(world)
    assert cluster.depth(image(last), 9) == LIMIT + 1
    hypervisor.guests[server].silent = False
    settle(world)
    assert cluster.depth(image(last), 9) == 0
    assert show(client, last)["status"] == "in-use"


@pytest.mark.parametrize(
    "conf",
    [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}],
    indirect=True,
)
def test_it_leaves_off_for_a_move(admin: Client, world: World, cluster: FakeCluster) -> None:
    last = chain(admin, LIMIT + 1)

    def move() -> tuple[Any, Any, str]:
        answer = admin.post(f"/v3/volumes/{last}/action", {"os-migrate_volume": {"host": FAST}})
        return answer, show(admin, last)["os-vol-host-attr:host"], str(rows(world)[0].lease_owner)

    ends = as_others_see_it(cluster, move)
    flattens.begin(world)
    answer, host, owner = ends[0]
    assert answer.status_code == 202, answer.text
    assert host != FAST  # Not yet: what was at it has only been told.
    assert owner.startswith("stop ")
    assert rows(world)[0].lease_owner is None
    settle(world, 5)
    after = show(admin, last)
    assert (after["status"], after["os-vol-host-attr:host"], rows(world)) == ("available", FAST, [])
    assert image(last) in cluster_of(world, "fast").stored


def test_it_leaves_off_for_a_revert(client: Client, world: World, cluster: FakeCluster) -> None:
    last = chain(client, LIMIT + 1)
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": last}}).json["snapshot"]["id"]
    really, held = cluster.roll_back, []

    def roll_back(name: str, snap: str) -> None:
        held.append(bool(cluster.watchers.get(name)))
        really(name, snap)

    cluster.roll_back = roll_back  # type: ignore[method-assign]
    body = {"revert": {"snapshot_id": snapshot}}
    ends = as_others_see_it(cluster, lambda: client.at("3.40").post(f"/v3/volumes/{last}/action", body))
    flattens.begin(world)
    assert ends[0].status_code == 202, ends[0].text
    assert held == []
    settle(world, 5)
    assert held == [False]
    assert (show(client, last)["status"], rows(world)) == ("available", [])


def test_only_so_many_are_made_whole_at_once_and_jobs_have_threads_of_their_own(
    client: Client, world: World, cluster: FakeCluster
) -> None:
    before = chain(client, LIMIT)
    clones = [client.volume(source_volid=before)["id"] for _ in range(3)]
    going_on, begun = threading.Event(), threading.Semaphore(0)

    def wait(_name: str) -> None:
        begun.release()
        going_on.wait(30)

    cluster.meanwhile = wait
    threaded = dataclasses.replace(world, flattening=Jobs(2))
    for _ in range(2):
        reconcile.once(threaded)
    assert all(begun.acquire(timeout=30) for _ in range(2))
    assert not begun.acquire(timeout=0.05)
    assert len(rows(world)) == 2
    assert threaded.jobs.room
    going_on.set()
    deadline = time.monotonic() + 30
    while any(cluster.depth(image(one), 9) for one in clones) and time.monotonic() < deadline:
        reconcile.once(threaded)
        time.sleep(0.01)
    threaded.flattening.stop(30)
    assert [cluster.depth(image(one), 9) for one in clones] == [0, 0, 0]


def test_two_processes_do_not_begin_the_same(client: Client, world: World, cluster: FakeCluster) -> None:
    last = chain(client, LIMIT + 1)
    ends = as_others_see_it(cluster, lambda: flattens._begin(world, last))
    assert flattens.begin(world) == 1
    assert ends == [False]


def test_a_clone_that_is_taken_over_counts_with_what_is_below_it(
    admin: Client, world: World, cluster: FakeCluster
) -> None:
    cluster.create("old-0", 2**30)
    for number in range(LIMIT + 2):
        cluster.copy(f"old-{number}", f"old-{number + 1}", 2**30)
    body = {"host": "testhost@ceph#ceph", "ref": {"source-name": f"old-{LIMIT + 1}"}}
    taken = admin.at("3.8").post("/v3/manageable_volumes", {"volume": body}).json["volume"]["id"]
    assert depth_known(world, taken) == LIMIT + 1
    settle(world)
    assert cluster.depth(image(taken), 9) == 0
