# SPDX-License-Identifier: Apache-2.0
"""On which back end a new volume goes: filters, then the most room. No process of its own, no state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.core import capabilities, types
from cinderlite.db import models


def zones(world: World) -> list[str]:
    """The availability zones there are, the default one first."""
    return list(
        dict.fromkeys([world.settings.availability_zone, *(b.availability_zone for b in world.backends.values())])
    )


def choose(
    ctx: Context,
    session: Session,
    kind: models.VolumeType,
    size: int,
    *,
    zone: str | None,
    hints: Mapping[str, Any],
    near: str | None = None,
) -> tuple[Backend, str, bool]:
    """The back end for a volume of `size` GiB of a type, its zone, and whether it fits.

    `near` is the pool of the source that it is made from: a clone is where its parent is. If none fits it is the first
    one: as in Cinder a volume is accepted before a place is looked for. Raises InvalidInput for an unknown zone.
    """
    del session, size, hints
    world = ctx.world
    wanted = zone or world.settings.availability_zone
    if wanted not in zones(world):
        if not ctx.settings.zone_fallback:
            raise errors.InvalidInput(f"Availability zone '{zone}' is invalid.")
        wanted = world.settings.availability_zone
    if near is not None:
        return world.backend(near), wanted, True
    fitting = [backend for backend in world.backends.values() if fits(backend, kind, wanted)]
    return next(iter(fitting or world.backends.values())), wanted, bool(fitting)


def fits(backend: Backend, kind: models.VolumeType, zone: str) -> bool:
    """Whether volumes of a type and in a zone may be on a back end."""
    return backend.availability_zone == zone and capabilities.satisfy(backend, types.extra_specs(kind))
