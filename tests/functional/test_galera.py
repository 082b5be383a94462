# SPDX-License-Identifier: Apache-2.0
"""A Galera cluster as the database: two API hosts on two of its nodes, and a node that dies."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections import Counter
from collections.abc import Iterator

import pytest
import sqlalchemy
from oslo_config import cfg

from backends.databases import Galera
from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import reconcile, volumes
from cinderlite.db import migrate, models
from cinderlite.db.session import Database
from conftest import cluster_of, world_of_fakes
from lab.process import wait

pytestmark = [
    pytest.mark.real,
    pytest.mark.parametrize("conf", [{"quota_volumes": -1, "quota_gigabytes": -1}], indirect=True),
]


@pytest.fixture(scope="module")
def galera() -> Iterator[Galera]:
    made = Galera()
    yield made
    made.stop()


@pytest.fixture
def worlds(galera: Galera, conf: cfg.ConfigOpts) -> Iterator[list[World]]:
    """Two API hosts over the same Ceph, each of which asks another node."""
    url = sqlalchemy.make_url(galera.blank())
    migrate.upgrade(url.render_as_string())
    opened = [Database(node.url(url.database or ""), 10) for node in galera.nodes[:2]]
    first = world_of_fakes(conf, opened[0])
    yield [first, dataclasses.replace(first, db=opened[1])]
    for one in opened:
        one.close()


def context(world: World) -> Context:
    return Context(world, "u", "p", frozenset({"member"}), "req-x")


def waiting(world: World, count: int) -> list[models.Volume]:
    """Volumes whose creation was accepted by a host that died then."""
    kind = volumes.create(context(world), size=1).volume_type_id
    made = []
    for _ in range(count):
        volume = models.Volume(
            id=models.new_id(), project_id="p", user_id="u", size=1, availability_zone="nova", host="testhost@ceph#ceph",
            volume_type_id=kind,
        )  # fmt: skip
        volumes.LIFECYCLE.start(volume, "create", 0.0, "req-x")
        volume.lease_owner = None
        made.append(volume)
    with world.db.write() as session:
        session.add_all(made)
    return made


def seen(world: World, ids: list[str]) -> dict[str, str]:
    with world.db.read() as session:
        table = models.Volume
        found = session.execute(sqlalchemy.select(table.id, table.status).where(table.id.in_(ids)))
        return dict(found.tuples().all())


def test_work_that_is_left_is_done_once_by_hosts_on_two_nodes(worlds: list[World]) -> None:
    left = waiting(worlds[0], 40)
    ids = [one.id for one in left]
    wait(lambda: len(seen(worlds[1], ids)) == len(ids), timeout=20, what="the other node to have the rows")
    claimed: list[str] = []

    def take(world: World, row_id: str) -> None:
        try:
            owner = volumes.LIFECYCLE.claim(world, row_id, 60.0)
        except errors.DatabaseUnavailable:
            return  # The nodes found that the other was quicker.
        if owner is not None:
            claimed.append(row_id)
            volumes.LIFECYCLE.run(world, row_id, owner)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: take(*pair), [(world, row_id) for row_id in ids for world in worlds]))
    assert Counter(claimed) == Counter(ids)
    for world in worlds:
        wait(lambda: set(seen(world, ids).values()) == {"available"}, timeout=20, what="the nodes to agree")  # noqa: B023
        assert reconcile.finish(world) == 0
    assert cluster_of(worlds[0]).images("") >= {one.image for one in left}


def test_of_deletes_on_two_nodes_one_is_granted(worlds: list[World]) -> None:
    for _ in range(10):
        volume = volumes.create(context(worlds[0]), size=1)
        wait(lambda: bool(seen(worlds[1], [volume.id])), timeout=20, what="the other node to have the row")  # noqa: B023

        def granted(world: World) -> bool:
            with world.db.read() as session:
                found = session.get_one(models.Volume, volume.id)  # noqa: B023
            try:
                volumes.delete(context(world), found)
            except (errors.Conflict, errors.InvalidVolume, errors.DatabaseUnavailable, errors.VolumeNotFound):
                return False
            return True

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(granted, worlds))
        assert answers.count(True) == 1
        for world in worlds:
            wait(lambda: seen(world, [volume.id]) in ({}, {volume.id: "deleted"}), timeout=20, what="it to be gone")  # noqa: B023
    assert cluster_of(worlds[0]).images("") == frozenset()


# PyMySQL leaves a socket that nobody listens on to be collected.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")
def test_what_was_acknowledged_outlives_the_node_and_the_others_go_on(galera: Galera, worlds: list[World]) -> None:
    first, second = worlds
    ids = [volumes.create(context(first), size=1).id for _ in range(20)]
    lapsing = waiting(first, 1)[0]
    galera.nodes[0].kill()
    with pytest.raises(errors.DatabaseUnavailable):
        volumes.create(context(first), size=1)
    wait(lambda: galera.nodes[1].status("wsrep_cluster_status") == "Primary", timeout=60, what="the rest to go on")
    assert seen(second, ids) == dict.fromkeys(ids, "available")
    made = volumes.create(context(second), size=1)
    assert reconcile.finish(second) == 1
    assert set(seen(second, [made.id, lapsing.id]).values()) == {"available"}
