# SPDX-License-Identifier: Apache-2.0
"""The connections to Ceph that the service's own processes have, or had until just now, on whatever host.

Each process says of its own, so that nobody takes them for a server's. One that died, or whose connection was cut off,
can leave a watch on an image for half a minute.
"""

from __future__ import annotations

from sqlalchemy import delete, select

from cinderlite.context import World
from cinderlite.db import clock, models

#: Seconds between two signs of life, and after which a connection does not count any more.
_TOLD_EVERY, _FORGOTTEN_AFTER = 60.0, 600.0


def addresses(world: World) -> frozenset[str]:
    """Addresses of the connections of all the service's processes, as far as they said so."""
    table = models.OwnClient
    with world.db.read() as session:
        alive = session.scalars(select(table.address).where(table.seen_at > clock.now() - _FORGOTTEN_AFTER))
        return frozenset(alive).union(*(one.cluster.clients() for one in world.backends.values()))


def tell(world: World) -> None:
    """Have the other processes know the connections that this one has, and forget those of the dead."""
    mine = frozenset().union(*(one.cluster.clients() for one in world.backends.values()))
    table = models.OwnClient
    with world.db.read() as session:
        fresh = set(session.scalars(select(table.address).where(table.seen_at > clock.now() - _TOLD_EVERY)))
    if mine - fresh:
        with world.db.write() as session:
            now = clock.read(session)
            for address in sorted(mine - fresh):
                session.merge(table(address=address, seen_at=now))
            session.execute(delete(table).where(table.seen_at < now - _FORGOTTEN_AFTER))
