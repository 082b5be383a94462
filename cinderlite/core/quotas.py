# SPDX-License-Identifier: Apache-2.0
"""Quotas: usage is summed from the rows under the project's lock, so there is no counter that could drift."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy
from sqlalchemy import exc, func, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context, Settings, World
from cinderlite.db import models


def defaults(settings: Settings) -> dict[str, int]:
    """Configured limit of each resource; GiB where the name says so, -1 for none."""
    return {**settings.quotas, "per_volume_gigabytes": settings.per_volume_gigabytes}


def limits(world: World, project_id: str) -> dict[str, int]:
    """A project's limit of each resource: its own, else the default."""
    with world.db.read() as session:
        return _limits(session, world.settings, project_id)


def _limits(session: Session, settings: Settings, project_id: str) -> dict[str, int]:
    own = session.execute(
        select(models.Quota.resource, models.Quota.limit).where(models.Quota.project_id == project_id)
    )
    return defaults(settings) | {resource: limit for resource, limit in own if resource in defaults(settings)}


def usage(world: World, project_id: str) -> dict[str, int]:
    """What a project uses of each resource now."""
    with world.db.read() as session:
        volumes, gigabytes = _usage(session, project_id)
    return dict.fromkeys(defaults(world.settings), 0) | {"volumes": volumes, "gigabytes": gigabytes}


def _usage(session: Session, project_id: str) -> tuple[int, int]:
    table = models.Volume
    count, size = session.execute(
        select(func.count(), func.coalesce(func.sum(table.size), 0)).where(
            table.project_id == project_id, table.deleted.is_(False)
        )
    ).one()
    return int(count), int(size)


def lock(session: Session, project_id: str) -> None:
    """Make every other transaction that counts this project wait until this one ends.

    Must be the first statement of its transaction, so that what is summed afterwards is what others committed.
    """
    table = models.ProjectLock
    held = select(table.project_id).where(table.project_id == project_id).with_for_update()
    if session.execute(held).first() is None:
        try:
            with session.begin_nested():
                session.execute(sqlalchemy.insert(table).values(project_id=project_id))
        except exc.IntegrityError:  # Another transaction made the row meanwhile: wait for that one.
            session.execute(held)


def admit_volume(session: Session, settings: Settings, project_id: str, size: int) -> None:
    """Refuse a further volume of `size` GiB that the project's quota does not allow. Call under `lock`."""
    allowed = _limits(session, settings, project_id)
    largest = allowed["per_volume_gigabytes"]
    if 0 <= largest < size:
        raise errors.VolumeSizeExceedsLimit(size, largest)
    volumes, gigabytes = _usage(session, project_id)
    if 0 <= allowed["gigabytes"] < gigabytes + size:
        raise errors.VolumeSizeExceedsAvailableQuota(size, allowed["gigabytes"], gigabytes)
    if 0 <= allowed["volumes"] < volumes + 1:
        raise errors.VolumeLimitExceeded(allowed["volumes"])


def update(ctx: Context, project_id: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Set a project's own limits and return all of them. Raises InvalidInput on a name or value that cannot be."""
    known = defaults(ctx.settings)
    unknown = sorted(wanted.keys() - known.keys())
    if unknown:
        raise errors.InvalidInput(f"Bad key(s) in quota set: {', '.join(unknown)}")
    used = usage(ctx.world, project_id)
    for resource, limit in wanted.items():
        if 0 <= limit < used[resource]:
            raise errors.InvalidInput(
                f"Quota limit {limit} for {resource} must be equal or greater than the {used[resource]} already used"
            )
    with ctx.world.db.write() as session:
        for resource, limit in wanted.items():
            session.merge(models.Quota(project_id=project_id, resource=resource, limit=limit))
    return limits(ctx.world, project_id)


def reset(ctx: Context, project_id: str) -> None:
    """Give a project the default limits again."""
    with ctx.world.db.write() as session:
        session.execute(sqlalchemy.delete(models.Quota).where(models.Quota.project_id == project_id))
