# SPDX-License-Identifier: Apache-2.0
"""Signs of life of the API hosts, what administrators decided about them.

Any process serves every volume, so a part that is down holds nothing up. What a newcomer gets wrong: disabling keeps
new volumes away from a back end; freezing also keeps what is there from being deleted or snapshotted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from sqlalchemy import bindparam, exc, func, or_, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.db import clock, models

SCHEDULER, VOLUME, BACKUP = "cinder-scheduler", "cinder-volume", "cinder-backup"
#: Why a frozen back end is disabled.
FROZEN = "frozen"


def beat(world: World) -> None:
    """Note that this host is alive, and which back ends it serves."""
    host = world.settings.host
    parts = [(host, SCHEDULER), *((f"{one.host}@{name}", VOLUME) for name, one in world.backends.items())]
    if world.backup_cluster is not None:
        parts.append((host, BACKUP))
    for name, binary in parts:
        # Another process of this host may be quicker with the first sign. One part at a time: two processes that each
        # made several rows in one transaction could wait for each other.
        with contextlib.suppress(exc.IntegrityError), world.db.write() as session:
            row = session.scalar(
                select(models.Service).where(models.Service.host == name, models.Service.binary == binary)
            )
            if row is None:
                session.add(models.Service(host=name, binary=binary, updated_at=clock.utcnow()))
            else:
                row.updated_at = clock.utcnow()


def listed(ctx: Context) -> Sequence[models.Service]:
    """Every host that ever gave a sign of life, with the parts that it plays, by name."""
    with ctx.world.db.read() as session:
        return session.scalars(select(models.Service).order_by(models.Service.host, models.Service.binary)).all()


def is_up(ctx: Context, service: models.Service) -> bool:
    """Whether the host has given a sign of life lately."""
    with ctx.world.db.read() as session:
        age = session.scalars(select(clock.utcnow())).one() - service.updated_at
    return bool(age.total_seconds() < ctx.settings.service_down_after)


def remove(world: World, host: str) -> int:
    """Forget a host that is gone for good, with its back ends; how many parts that were.

    Raises HostNotFound, and Conflict for one that has given a sign of life lately.
    """
    table = models.Service
    with world.db.write() as session:
        named = table.host == host, table.host.startswith(f"{host}@", autoescape=True)
        found = session.scalars(select(table).where(or_(*named)).with_for_update()).all()
        if not found:
            raise errors.HostNotFound(host)
        now = session.scalars(select(clock.utcnow())).one()
        if any((now - one.updated_at).total_seconds() < world.settings.service_down_after for one in found):
            raise errors.Conflict(f"Host {host} is alive; it would be here again at once.")
        for one in found:
            session.delete(one)
    return len(found)


def is_here(ctx: Context, service: models.Service) -> bool:
    """Whether this host plays the part."""
    mine = {ctx.settings.host, *(f"{one.host}@{name}" for name, one in ctx.world.backends.items())}
    return service.host in mine


def backend(ctx: Context, service: models.Service) -> Backend | None:
    """The back end behind a part, if this process has it too."""
    return ctx.world.backends.get(service.host.partition("@")[2])


def backend_of(ctx: Context, host: str) -> Backend:
    """The back end that a host, or a back end or pool of one, names first. Raises ServiceNotFound."""
    names = [(one, (one.host, f"{one.host}@{one.name}", one.pool)) for one in ctx.world.backends.values()]
    found = next((one for one, called in names if host in called), None)
    if found is None:
        raise errors.ServiceNotFound(host)
    return found


def zone(ctx: Context, service: models.Service) -> str:
    """The availability zone of a part."""
    behind = backend(ctx, service)
    return behind.availability_zone if behind else ctx.settings.availability_zone


def backend_state(ctx: Context, service: models.Service) -> str:
    """Whether the Ceph cluster behind a part answers; of one that only another host has, what that host's life says."""
    behind = backend(ctx, service)
    if behind is None:
        return "up" if is_up(ctx, service) else "down"
    return "up" if answers(behind) else "down"


def answers(one: Backend) -> bool:
    """Whether the cluster of a back end answers."""
    try:
        one.cluster.check()
    except errors.Unavailable:
        return False
    return True


def find(session: Session, host: str, binary: str) -> models.Service:
    """The part `binary` of a host, locked. Raises ServiceMissing."""
    table = models.Service
    query = select(table).where(table.host == host, table.binary == binary).with_for_update()
    found = session.scalars(query).one_or_none()
    if found is None:
        raise errors.ServiceMissing(binary, host)
    return found


def disable(ctx: Context, host: str, binary: str, reason: str | None = None) -> None:
    """Let a back end get no new volumes. Raises ServiceMissing."""
    with ctx.world.db.write() as session:
        row = find(session, host, binary)
        row.disabled, row.disabled_reason = True, reason or row.disabled_reason


def enable(ctx: Context, host: str, binary: str) -> None:
    """Let a back end get new volumes again, unless it is frozen. Raises ServiceMissing."""
    with ctx.world.db.write() as session:
        row = find(session, host, binary)
        row.disabled, row.disabled_reason = False, None


def freeze(ctx: Context, host: str) -> None:
    """Let nothing be made or deleted on a back end. Raises InvalidInput for one unknown, or frozen already."""
    with ctx.world.db.write() as session:
        row = _backend(session, host)
        if row.frozen:
            raise errors.InvalidInput(f"No service could be changed: frozen in {host} must be False.")
        row.frozen, row.disabled, row.disabled_reason = True, True, FROZEN


def thaw(ctx: Context, host: str) -> None:
    """Take that back, and enable the back end. Raises InvalidInput for one unknown, or not frozen."""
    with ctx.world.db.write() as session:
        row = _backend(session, host)
        if not row.frozen:
            raise errors.InvalidInput(f"No service could be changed: frozen in {host} must be True.")
        row.frozen, row.disabled, row.disabled_reason = False, False, None


def fail_over(ctx: Context, host: str) -> None:
    """Refuse to move a back end to its replica, as Cinder does for a driver without one. Raises InvalidInput."""
    with ctx.world.db.read() as session:
        _backend(session, host)
    raise errors.InvalidInput(
        f"No service could be changed: replication_status in {host} must be enabled or failed-over to failover."
    )


def _backend(session: Session, host: str) -> models.Service:
    try:
        return find(session, host, VOLUME)
    except errors.ServiceMissing as error:
        raise errors.InvalidInput(f"No service found with host={host}") from error


def refuse_frozen(session: Session, pool: str) -> None:
    """Raise InvalidInput if the back end of a volume's `host` is frozen."""
    table = models.Service
    frozen = table.host == pool.partition("#")[0], table.binary == VOLUME, table.frozen
    if session.scalar(select(table.id).where(*frozen)) is not None:
        raise errors.InvalidInput("Modification operations are not allowed on frozen storage backends.")


#: Made once: every new volume needs it.
_CLOSED = select(models.Service.host, models.Service.frozen, models.Service.disabled_reason).where(
    models.Service.binary == VOLUME,
    models.Service.host.in_(bindparam("hosts", expanding=True)),
    or_(models.Service.disabled, models.Service.frozen),
)


def closed(session: Session, world: World) -> dict[str, str]:
    """The back ends that get no new volumes, by name, each with the reason."""
    names = {f"{one.host}@{name}": name for name, one in world.backends.items()}
    rows = session.execute(_CLOSED, {"hosts": list(names)})
    return {names[host]: FROZEN if frozen else reason or "disabled" for host, frozen, reason in rows}


def refuse_closed(session: Session, world: World, name: str) -> None:
    """Raise ServiceDisabled if a back end gets no new volumes."""
    reason = closed(session, world).get(name)
    if reason is not None:
        raise errors.ServiceDisabled(world.backends[name].pool, reason)


def of_host(ctx: Context, host: str) -> Sequence[models.Service]:
    """The parts of a host, or of one back end of it. Raises HostNotFound."""
    found = [row for row in listed(ctx) if host in (row.host, row.host.partition("@")[0])]
    if not found:
        raise errors.HostNotFound(host)
    return found


def switch(ctx: Context, host: str, *, on: bool) -> None:
    """Enable or disable all parts of a host. Raises HostNotFound."""
    for row in of_host(ctx, host):
        if on:
            enable(ctx, row.host, row.binary)
        else:
            disable(ctx, row.host, row.binary)


def usage(ctx: Context, host: str) -> dict[str, tuple[int, int, int, int]]:
    """What is on a back end by project: volumes and their GiB, snapshots and theirs. Raises HostNotFound."""
    if VOLUME not in {row.binary for row in of_host(ctx, host)}:
        raise errors.HostNotFound(host)
    volumes, snapshots = models.Volume, models.Snapshot
    here = or_(volumes.host == host, volumes.host.startswith(f"{host}#", autoescape=True),
                                           volumes.host.startswith(f"{host}@", autoescape=True))  # fmt: skip
    by_volume = (
        select(volumes.project_id, func.count(), func.sum(volumes.size))
        .where(volumes.deleted.is_(False), here)
        .group_by(volumes.project_id)
    )
    by_snapshot = (
        select(snapshots.project_id, func.count(), func.sum(snapshots.volume_size))
        .join(volumes, volumes.id == snapshots.volume_id)
        .where(here)
        .group_by(snapshots.project_id)
    )
    with ctx.world.db.read() as session:
        held = {project: (int(count), int(size)) for project, count, size in session.execute(by_volume)}
        kept = {project: (int(count), int(size)) for project, count, size in session.execute(by_snapshot)}
    return {project: (*held.get(project, (0, 0)), *kept.get(project, (0, 0))) for project in sorted(held.keys() | kept)}
