# SPDX-License-Identifier: Apache-2.0
"""cinderlite-api as it is run, over fakes: for what only the real process shows, such as how it treats connections.

As long as the file that HOLD_GUESTS names is there no server answers, and as long as HOLD_CEPH is, nothing in the cluster
changes. It has one server, of project demo.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import time
from typing import Any

from oslo_config import cfg

from cinderlite import app as composition
from cinderlite import config
from cinderlite.cmd import api
from cinderlite.context import World
from cinderlite.db.session import Database
from conftest import world_of_fakes
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor


def _wait_out(name: str) -> None:
    path = pathlib.Path(os.environ[name])
    while path.exists():
        time.sleep(0.01)


class _HeldHypervisor(FakeHypervisor):
    def find(self, server_id: str, **more: Any) -> Any:
        """A server, after the hold."""
        _wait_out("HOLD_GUESTS")
        return super().find(server_id, **more)


def world(conf: cfg.ConfigOpts) -> World:
    """A world of fakes that can be held, over the configured database."""
    threads = conf.api_threads + composition.slow_threads(conf)
    made = world_of_fakes(conf, Database(config.database_url(conf), conf.database.timeout, threads))
    guests = _HeldHypervisor()
    guests.clusters = made.guests.clusters  # type: ignore[attr-defined]
    guests.add_server("vm1", "demo", ports=40)
    for backend in made.backends.values():
        assert isinstance(backend.cluster, FakeCluster)
        backend.cluster.life = lambda: _wait_out("HOLD_CEPH")
    return dataclasses.replace(made, guests=guests)


if __name__ == "__main__":
    composition.real_world = world
    sys.exit(api.main())
