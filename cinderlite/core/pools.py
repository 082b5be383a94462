# SPDX-License-Identifier: Apache-2.0
"""Pools: what they can do and how much room they have, read from Ceph now and then and kept in the process.

What a newcomer gets wrong: a back end is chosen inside a transaction, where nobody may ask Ceph. So `learn` before
it; inside, only what was learned counts. Several processes may promise the same room for a while: each reads Ceph's
own figures again soon.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from cinderlite import errors
from cinderlite.context import Backend, Context, Room, World
from cinderlite.core import capabilities, services, types
from cinderlite.db import models

GIB = 1024**3
#: Seconds for which figures are good enough to choose by, are not read anew in the background, and are shown as new.
GOOD_FOR, FRESH_FOR, NEW_FOR = 120.0, 30.0, 5.0
UNKNOWN = "unknown"


def learn(world: World, good_for: float = GOOD_FOR) -> None:
    """Read the figures of every back end whose last ones are older than that. Never inside a transaction.

    One that does not answer has none for as long, and hinders nobody. One that answers and has none yet, a pool in its
    first seconds, is asked again each time.
    """
    for name, backend in world.backends.items():
        last = world.room.get(name)
        if last is None or last.read + good_for < time.monotonic():
            world.room[name] = _read(backend)


def _read(backend: Backend) -> Room:
    try:
        backend.cluster.check()
        seen = backend.cluster.capacity()
    except errors.NoStatistics:
        return Room(-math.inf, None, None, 0.0)
    except (errors.Unavailable, errors.CephError):
        return Room(time.monotonic(), None, None, 0.0)
    return Room(time.monotonic(), seen.total_bytes / GIB, seen.free_bytes / GIB, seen.provisioned_bytes / GIB)


def left(world: World, backend: Backend, *, thin: bool = True) -> float | None:
    """GiB of new volumes that a back end still takes, as far as is known.

    Thin volumes may promise its size `max_over_subscription_ratio` times over, but only while it has free space.
    """
    room = world.room.get(backend.name)
    if room is None or room.total is None or room.free is None:
        return None
    reserved = math.floor(room.total * backend.reserved_percentage / 100)
    ratio = backend.max_over_subscription_ratio if thin else 1.0
    return min((room.total - reserved) * ratio - room.provisioned, (room.free - reserved) * ratio)


def take(world: World, backend: Backend, size: int) -> None:
    """Count a volume of `size` GiB that Ceph's figures do not show yet."""
    if backend.name in world.room:
        world.room[backend.name].provisioned += size


def give_back(world: World, backend: Backend, size: int) -> None:
    """Count no more a volume of `size` GiB that Ceph's figures may still show."""
    if backend.name in world.room:
        room = world.room[backend.name]
        room.provisioned = max(room.provisioned - size, 0.0)


def described(world: World, backend: Backend) -> dict[str, Any]:
    """What extra specs can ask of a pool; sizes in GiB."""
    room = world.room.get(backend.name)
    return {
        **capabilities.of(backend),
        "pool_name": backend.volume_backend_name,
        "total_capacity_gb": round(room.total, 2) if room and room.total is not None else UNKNOWN,
        "free_capacity_gb": round(room.free, 2) if room and room.free is not None else UNKNOWN,
        "provisioned_capacity_gb": round(room.provisioned, 2) if room else 0.0,
        "reserved_percentage": backend.reserved_percentage,
        "max_over_subscription_ratio": str(backend.max_over_subscription_ratio),
    }


def visible(ctx: Context, wanted: Mapping[str, str], volume_type: str | None = None) -> list[Backend]:
    """The pools that take new volumes and have the capabilities `wanted`, if one is named all that a type asks for.

    Raises VolumeTypeNotFound.
    """
    learn(ctx.world)
    with ctx.world.db.read() as session:
        closed = services.closed(session, ctx.world)
        specs = types.extra_specs(types.resolve(ctx, session, volume_type)) if volume_type else {}
    found = []
    for one in ctx.world.backends.values():
        there = described(ctx.world, one) | {"name": one.pool}
        alike = all(_is_like(there.get(key), text) for key, text in wanted.items())
        if one.name not in closed and alike and capabilities.unmet(there, specs) is None:
            found.append(one)
    return found


def _is_like(value: Any, text: str) -> bool:
    """Whether a capability is what a query says, where everything is text."""
    return value is not None and (str(value).lower() == text.lower() or capabilities.matches(value, f"== {text}"))


def shown(ctx: Context, backend: Backend) -> dict[str, Any]:
    """The same with what only administrators look at, as new as Ceph gives it."""
    learn(ctx.world, NEW_FOR)
    found = described(ctx.world, backend)
    with ctx.world.db.read() as session:
        allocated = session.scalar(
            select(func.coalesce(func.sum(models.Volume.size), 0)).where(
                models.Volume.deleted.is_(False), models.Volume.host == backend.pool
            )
        )
    is_up = services.answers(backend)
    fsid = backend.cluster.fsid() if is_up else ""
    return found | {
        "backend_state": "up" if is_up else "down",
        "allocated_capacity_gb": int(allocated or 0),
        "location_info": f"{capabilities.PROTOCOL}:{fsid}:{backend.cluster.pool}",
        "timestamp": models.utcnow().isoformat(),
    }
