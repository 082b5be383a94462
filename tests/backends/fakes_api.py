# SPDX-License-Identifier: Apache-2.0
"""cinderlite-api as it is run, over fakes: for what only the real process shows, such as how it treats connections.

As long as the file that HOLD_GUESTS names is there no server answers, as long as HOLD_CEPH is, nothing in the cluster
changes, and as long as HOLD_START is, which then says who waits for it, no further process begins to serve. It has one
server, of project demo. With PLACE it seems to be on a machine of that name, so that nobody here can look at its
process. The database outlives it, the cluster does not.

All is imported where it is used, as by the service itself: what is imported before there is a directory for the figures
of all its processes shares none.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys
import time
from typing import Any

from cinderlite.cmd import api


def _wait_out(name: str) -> None:
    path = pathlib.Path(os.environ[name])
    while path.exists():
        time.sleep(0.01)


def world(conf: Any) -> Any:
    """A world of fakes that can be held, over the configured database."""
    from cinderlite import app as composition
    from cinderlite import config
    from cinderlite.db.session import Database
    from cinderlite.jobs import Jobs
    from conftest import world_of_fakes
    from fakes_cluster import FakeCluster
    from fakes_hypervisor import FakeHypervisor

    class HeldHypervisor(FakeHypervisor):
        def find(self, server_id: str, **more: Any) -> Any:
            """A server, after the hold."""
            _wait_out("HOLD_GUESTS")
            return super().find(server_id, **more)

    threads = conf.api_threads + composition.slow_threads(conf)
    made = world_of_fakes(conf, Database(config.database_url(conf), conf.database.timeout, threads))
    guests = HeldHypervisor()
    guests.clusters = made.guests.clusters  # type: ignore[attr-defined]
    guests.add_server("vm1", "demo", ports=40)
    for backend in made.backends.values():
        assert isinstance(backend.cluster, FakeCluster)
        backend.cluster.life = lambda: _wait_out("HOLD_CEPH")
    return dataclasses.replace(made, guests=guests, jobs=Jobs(1), flattening=Jobs(1))


class _Server(api._Server):
    """The service's own."""

    def load(self) -> Any:
        """The application, in a worker, over fakes."""
        from cinderlite import app as composition
        from cinderlite.core import states

        composition.real_world = world
        if place := os.environ.get("PLACE"):
            states._machine = functools.cache(lambda: place)
        hold = pathlib.Path(os.environ.get("HOLD_START", "/nowhere"))
        if hold.exists():
            hold.write_text(str(os.getpid()), encoding="ascii")
            _wait_out("HOLD_START")
        return super().load()


if __name__ == "__main__":
    api._Server = _Server  # type: ignore[misc]
    sys.exit(api.main())
