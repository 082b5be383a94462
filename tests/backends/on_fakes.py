# SPDX-License-Identifier: Apache-2.0
"""cinderlite-api over the fakes: a real process, with a database that outlives it and a Ceph that does not.

While the file HOLD is there no image is made; HELD is made when one would be. PLACE is the name of another
machine on which this seems to be, so that nobody can look at its process.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

from oslo_config import cfg

import conftest
from cinderlite import app, config
from cinderlite.cmd import api
from cinderlite.context import World
from cinderlite.core import states
from cinderlite.db.session import Database
from cinderlite.jobs import Jobs
from fakes_cluster import FakeCluster
from lab.process import wait

PLACE = os.environ["PLACE"]
HOLD, HELD = pathlib.Path(os.environ["HOLD"]), pathlib.Path(os.environ["HELD"])


def hold() -> None:
    """Have the making of images wait."""
    create = FakeCluster.create

    def holding(self: FakeCluster, name: str, size_bytes: int) -> None:
        if HOLD.exists():
            HELD.touch()
            wait(lambda: not HOLD.exists(), timeout=60, what="the test to go on")
        create(self, name, size_bytes)

    FakeCluster.create = holding  # type: ignore[method-assign]


def world(conf: cfg.ConfigOpts) -> World:
    """A world of fakes over the configured database, with threads for its jobs."""
    made = conftest.world_of_fakes(conf, Database(config.database_url(conf), 10))
    return dataclasses.replace(made, jobs=Jobs(1), flattening=Jobs(1))


if __name__ == "__main__":
    hold()
    app.real_world = world
    if PLACE:
        states._machine = lambda: PLACE
    sys.exit(api.main())
