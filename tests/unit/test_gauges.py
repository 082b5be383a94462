# SPDX-License-Identifier: Apache-2.0
"""What /metrics says of work, volumes, pools and records is what there is, and 0 when it is gone."""

from __future__ import annotations

import datetime
import re
import time

import pytest
import sqlalchemy

from cinderlite.context import World
from cinderlite.core import gauges, pools, reconcile, recorder, states, volumes
from cinderlite.db import models
from conftest import Client, settle
from fakes_cluster import FakeCluster


@pytest.fixture
def told(world: World, client: Client) -> Told:
    return Told(world, client)


class Told:
    """What an operator reads."""

    def __init__(self, world: World, client: Client) -> None:
        self._client = client
        self._world = world
        self._gauges = gauges.Gauges(world, reconcile.MACHINES)

    def read(self) -> dict[str, float]:
        """Every sample after another pass."""
        self._gauges.ask()
        pools.learn(self._world, 0)
        self._gauges.note()
        self._gauges.count()
        text = self._client.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def test_work_that_waits_and_its_age(client: Client, world: World, told: Told) -> None:
    labels = '{kind="volumes",state="waiting",verb="create"}'
    volume = client.volume()["id"]
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume)
        row.created_at = models.utcnow() - datetime.timedelta(hours=1)
        row.status, row.busy, row.updated_at = "creating", 1, None
        row.intent = {"verb": "create", "request_id": "req"}
    now = told.read()
    assert now[f"cinderlite_work{labels}"] == 1
    assert now[f"cinderlite_work_oldest_seconds{labels}"] >= 3600
    settle(world)
    now = told.read()
    assert (now[f"cinderlite_work{labels}"], now[f"cinderlite_work_oldest_seconds{labels}"]) == (0, 0)


def test_work_that_somebody_is_at_and_that_is_taken_over(client: Client, world: World, told: Told) -> None:
    volume = client.volume()["id"]
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume)
        row.busy, row.status, row.intent = 1, "creating", {"verb": "create", "request_id": "req"}
        row.lease_owner, row.lease_until = states.new_owner(), time.time() + 60
    before = told.read()
    assert before['cinderlite_work{kind="volumes",state="running",verb="create"}'] == 1
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Volume).values(lease_until=1.0))
    assert told.read()['cinderlite_work{kind="volumes",state="waiting",verb="create"}'] == 1
    assert volumes.LIFECYCLE.claim(world, volume, 60) is not None
    name = 'cinderlite_leases_taken_over_total{kind="volumes"}'
    assert told.read()[name] == before.get(name, 0) + 1


def test_volumes_by_status(client: Client, world: World, told: Told) -> None:
    volume = client.volume(size=3)["id"]
    now = told.read()
    assert now['cinderlite_volumes{status="available"}'] == 1
    assert now['cinderlite_volume_bytes{status="available"}'] == 3 * 2**30
    client.delete(f"/v3/volumes/{volume}")
    assert told.read()['cinderlite_volumes{status="available"}'] == 0


def test_pools_and_whether_they_answer(client: Client, cluster: FakeCluster, told: Told) -> None:
    now = told.read()
    assert now['cinderlite_ceph_answers{backend="ceph"}'] == 1
    total, free = (now[f'cinderlite_pool_{what}_bytes{{backend="ceph"}}'] for what in ("total", "free"))
    assert 0 < free <= total
    client.volume(size=7)
    assert told.read()['cinderlite_pool_provisioned_bytes{backend="ceph"}'] == 7 * 2**30
    cluster.down = True
    assert told.read()['cinderlite_ceph_answers{backend="ceph"}'] == 0


def test_records_to_be_written(client: Client, world: World, told: Told) -> None:
    client.volume()
    name = 'cinderlite_records_waiting{kind="volumes"}'
    assert told.read()[name] == 1
    recorder.Recorder(world).once()
    assert told.read()[name] == 0


def test_a_pass_leaves_its_time(told: Told) -> None:
    before = time.time()
    assert before - 1 <= told.read()["cinderlite_pass_timestamp_seconds"] <= time.time() + 1
