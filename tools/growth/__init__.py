# SPDX-License-Identifier: Apache-2.0
"""How cinderlite's cost grows: with rows, clients, processes, copies, disks, servers and requests; see `tools/bench`.

Each part has a Ceph and a service of its own with an empty database, and returns what it found as a `Part`. A part's
docstring is what the page says of it.
"""

from __future__ import annotations

import pathlib
import resource
from collections.abc import Callable

from growth import clients, copies, rows, servers
from growth.place import FULL, SMALL, Fact, Part, Place, Sizes
from lab.ceph import Ceph

__all__ = ["FULL", "PARTS", "SMALL", "Fact", "Part", "Sizes", "measure"]

PARTS: dict[str, Callable[[Place], Part]] = {
    one.__name__: one
    for one in (
        rows.rows,
        clients.clients,
        clients.processes,
        clients.logins,
        clients.requests,
        copies.creates,
        copies.copies,
        servers.disks,
        servers.servers,
    )
}


def measure(directory: pathlib.Path, name: str, sizes: Sizes) -> Part:
    """One part, on a Ceph of its own: what another part left there would cost it time."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))  # A socket for each simulated monitor.
    mine = directory / name
    mine.mkdir()
    ceph = Ceph(mine / "ceph")
    try:
        ceph.start()
        return PARTS[name](Place(ceph, mine, sizes))
    finally:
        ceph.destroy()
