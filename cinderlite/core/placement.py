# SPDX-License-Identifier: Apache-2.0
"""On which back end a new volume goes: filters, then the most room. No process of its own, no state.

What a newcomer gets wrong: all of it happens inside the transaction that accepts the volume, so nothing here asks
Ceph or a hypervisor. What those know is in the `Hints`, which are made before, and in the figures that `pools` keeps.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.core import capabilities, pools, servers, services, types
from cinderlite.db import models

LOG = logging.getLogger(__name__)

#: The extra spec that says in which zones a type's volumes may be.
ZONES = "RESKEY:availability_zones"
#: The extra spec by which a type's volumes are counted as if their space were taken at once.
PROVISIONING = "provisioning:type"


def zones(world: World) -> list[str]:
    """The availability zones there are, the default one first."""
    found = dict.fromkeys(one.availability_zone for one in world.backends.values())
    return sorted(found, key=lambda zone: zone != world.settings.availability_zone)


def open_zones(ctx: Context) -> dict[str, bool]:
    """The availability zones, each with whether a back end of it gets new volumes."""
    with ctx.world.db.read() as session:
        closed = services.closed(session, ctx.world)
    open_ = {one.availability_zone for one in ctx.world.backends.values() if one.name not in closed}
    return {zone: zone in open_ for zone in zones(ctx.world)}


# -- what is asked


@dataclasses.dataclass(frozen=True, slots=True)
class Hints:
    """What the scheduler hints of a request say about where its volume goes."""

    #: Ids of volumes whose back end it should share, or must not.
    same: Collection[str] = ()
    different: Collection[str] = ()
    #: The host of the server that it should be near to.
    host: str | None = None


NO_HINTS = Hints()


def hints(ctx: Context, given: Mapping[str, Any]) -> Hints:
    """Read the scheduler hints of a request; those unknown are ignored. Raises InvalidInput, ServerNotFound."""
    server = given.get("local_to_instance")
    return Hints(
        _ids("same_host", given.get("same_host")),
        _ids("different_host", given.get("different_host")),
        servers.owned(ctx, _id("local_to_instance", server)).host if server else None,
    )


def _ids(hint: str, given: Any) -> tuple[str, ...]:
    if not given:
        return ()
    return tuple(_id(hint, one) for one in (given if isinstance(given, list) else [given]))


def _id(hint: str, given: Any) -> str:
    try:
        return str(uuid.UUID(str(given)))
    except ValueError as error:
        raise errors.InvalidInput(f"scheduler hint {hint}: '{str(given)[:64]}' is not a UUID") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """What a back end must satisfy to take a volume. `size` is what it grows by there, 0 if it is there already."""

    specs: Mapping[str, str]
    zones: Collection[str]
    size: int = 0
    #: Back ends that take nothing, with the reason.
    closed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: Names of back ends that alone will do, and of those that will not.
    only: Collection[str] | None = None
    never: Collection[str] = ()
    host: str | None = None

    def refusal(self, world: World, one: Backend) -> tuple[str, str] | None:
        """Why a back end cannot take it, in words for everybody and with what only administrators see; None if it can.

        The reasons are tried in the order in which a reader wants to know them.
        """
        unmet = capabilities.unmet(pools.described(world, one), self.specs)
        if unmet is not None:
            return "its volume type asks for what is not offered", f"{unmet} is not {self.specs[unmet]}"
        if one.availability_zone not in self.zones:
            return "nothing in its availability zone fits", f"its zone is {one.availability_zone}"
        if one.name in self.closed:
            return "storage is closed for new volumes", f"disabled ({self.closed[one.name]})"
        hint = self._excluded(one)
        if hint is not None:
            return "its scheduler hints leave nothing", f"excluded by {hint}"
        room = pools.left(world, one, thin=self.thin)
        if room is not None and self.size > (room := max(room, 0.0)):
            return "there is not enough room", f"{self.size} GiB wanted, {math.floor(room)} GiB left"
        return None

    def _excluded(self, one: Backend) -> str | None:
        """The scheduler hint that a back end does not satisfy."""
        if self.only is not None and one.name not in self.only:
            return "same_host"
        if one.name in self.never:
            return "different_host"
        return "local_to_instance" if self.host not in (None, one.host) else None

    @property
    def thin(self) -> bool:
        """Whether space counts only when it is written to."""
        return self.specs.get(PROVISIONING) != "thick"


# -- what is chosen


def choose(
    ctx: Context,
    session: Session,
    kind: models.VolumeType,
    size: int,
    *,
    zone: str | None,
    hints: Hints = NO_HINTS,
    near: str | None = None,
    dead: Mapping[str, errors.Unavailable] | None = None,
) -> tuple[Backend, str, str | None]:
    """The back end for a volume of `size` GiB of a type, its zone, and why it cannot be there, if none fits.

    As in Cinder a volume is accepted before a place is looked for. `near` is the pool of the source that it is made
    from: a clone is where its parent is. Those that are `dead` do not count. Raises InvalidInput for an unknown zone,
    what is wrong with a dead one if only that would fit.
    """
    world = ctx.world
    demand = Demand(
        types.extra_specs(kind),
        _zones(world, kind, zone, near),
        size,
        services.closed(session, world),
        _where(ctx, session, hints.same) if hints.same else None,
        _where(ctx, session, hints.different),
        hints.host,
    )
    among = [world.backend(near)] if near is not None else list(world.backends.values())
    try:
        fitting = best(ctx, demand, among)
    except errors.NoBackend as error:
        return among[0], zone or among[0].availability_zone, str(error.args[0])
    alive = [one for one in fitting if one.name not in (dead or {})]
    if dead and not alive:
        raise dead[fitting[0].name]
    return alive[0], alive[0].availability_zone, None


def best(ctx: Context, demand: Demand, among: Iterable[Backend]) -> list[Backend]:
    """The back ends that satisfy a demand, the one with the most room first. Raises NoBackend with the reasons."""
    reasons = {one.name: (one, demand.refusal(ctx.world, one)) for one in among}
    fitting = [one for one, reason in reasons.values() if reason is None]
    if not fitting:
        told = {name: reason for name, (_, reason) in reasons.items() if reason is not None}
        detail = "; ".join(f"{name}: {reason[1]}" for name, reason in told.items())
        LOG.warning("no back end for a volume: %s (request %s)", detail, ctx.request_id)
        raise errors.NoBackend(detail if ctx.is_admin else " and ".join({reason[0]: None for reason in told.values()}))
    return sorted(fitting, key=lambda one: -_weight(ctx.world, one, thin=demand.thin))


def fits(backend: Backend, kind: models.VolumeType, zone: str) -> bool:
    """Whether volumes of a type and in a zone may be on a back end, whatever room it has."""
    return backend.availability_zone == zone and capabilities.satisfy(backend, types.extra_specs(kind))


def _weight(world: World, one: Backend, *, thin: bool) -> float:
    room = pools.left(world, one, thin=thin)
    return -math.inf if room is None else room


def _zones(world: World, kind: models.VolumeType, zone: str | None, near: str | None) -> Collection[str]:
    """The zones in which a volume may be. Raises InvalidInput."""
    allowed, settings = zones(world), world.settings
    of_type = types.extra_specs(kind).get(ZONES)
    if of_type is not None:
        allowed = [one for one in allowed if one in {word.strip() for word in of_type.split(",")}]
        if not allowed:
            raise errors.InvalidInput(f"Volume type is only supported in these availability zones: {of_type}")
    wanted = zone
    if wanted is None and near is not None:
        wanted = world.backend(near).availability_zone
    if wanted is None and of_type is None:
        wanted = settings.availability_zone
    if wanted is not None and wanted not in allowed and settings.zone_fallback:
        wanted = settings.availability_zone
    if wanted is not None and wanted not in allowed:
        raise errors.InvalidInput(f"Availability zone '{wanted}' is invalid.")
    return allowed if wanted is None else (wanted,)


def _where(ctx: Context, session: Session, volume_ids: Collection[str]) -> frozenset[str]:
    """Names of the back ends of some volumes; another project's are not looked at."""
    if not volume_ids:
        return frozenset()
    table = models.Volume
    query = select(table.host).where(table.id.in_(volume_ids), table.deleted.is_(False))
    if not ctx.is_admin:
        query = query.where(table.project_id == ctx.project_id)
    return frozenset(host.partition("@")[2].partition("#")[0] for host in session.scalars(query))
