# SPDX-License-Identifier: Apache-2.0
"""How much is measured, where, and what comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from backends.service import Service
from charts import Chart
from lab.ceph import Ceph
from measuring import Client, available, timed


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is done: steps of what grows, and how often each thing is measured."""

    #: volumes in the database, and at most so many of the project that asks
    rows: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    own: int = 10_000
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    workers: tuple[int, ...] = (1, 2, 4)
    #: seconds of each step of clients and processes
    seconds: float = 8.0
    #: volumes made with librbd, and as many through the API
    creates: int = 400
    copies: tuple[int, ...] = (1, 10, 50)
    disks: tuple[int, ...] = (1, 2, 4, 8, 16)
    servers: tuple[int, ...] = (10, 100, 1000)
    requests: int = 100_000
    rounds: int = 30


FULL = Sizes()
#: To try whether everything can be measured: what comes out says nothing.
SMALL = Sizes((100, 500, 1000), 500, (1, 4), (1, 2), 1.0, 32, (1, 3), (1, 2), (10, 30), 200, 3)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One figure, and what it is to be."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """What was found of one part."""

    charts: list[Chart]
    facts: list[Fact] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part is measured, and how much of it; `directory` is the part's own."""

    ceph: Ceph
    directory: pathlib.Path
    sizes: Sizes

    @contextlib.contextmanager
    def service(
        self, name: str, sockets: pathlib.Path | None = None, options: dict[str, dict[str, object]] | None = None
    ) -> Iterator[Service]:
        """A service with an empty database."""
        groups: dict[str, dict[str, object]] = {
            "DEFAULT": {"quota_volumes": -1, "quota_gigabytes": -1, "quota_snapshots": -1, "reconcile_interval": 5},
            # The lab's pool is small, and a volume for which there is no room ends in error, as it should.
            "ceph": {"max_over_subscription_ratio": 1_000_000},
        }
        for group, values in (options or {}).items():
            groups.setdefault(group, {}).update(values)
        service = Service(self.directory / name, self.ceph.conf, sockets or self.directory / "none", groups)
        try:
            service.start()
            yield service
        finally:
            service.kill()

    def median(self, work: Callable[[], Any]) -> float:
        """Milliseconds of something, without the first time, in which connections and plans are made."""
        work()
        return round(statistics.median(timed(work)[0] for _ in range(self.sizes.rounds)), 2)


def made(client: Client, **fields: Any) -> str:
    """Make a volume; its id."""
    volume = str(client.call("POST", "/v3/volumes", {"volume": {"size": 1, **fields}})["volume"]["id"])
    available(client, volume)
    return volume
