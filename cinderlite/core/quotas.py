# SPDX-License-Identifier: Apache-2.0
"""Quotas: usage is summed from the rows under the project's lock, so there is no counter that could drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, CompoundSelect, Select, bindparam, func, literal, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

from cinderlite import errors
from cinderlite.context import Context, Settings, World
from cinderlite.core import types
from cinderlite.db import models
from cinderlite.db.session import make_and_lock, refusing

#: Two who set the same limit for the first time.
_CHANGING = errors.Conflict("These limits are being set by somebody else.")


#: The class whose limits stand in for the configured ones.
DEFAULT_CLASS = "default"


def configured(settings: Settings) -> dict[str, int]:
    """Configured limit of each resource; GiB where the name says so, -1 for none."""
    return {**settings.quotas, "per_volume_gigabytes": settings.per_volume_gigabytes}


def limits(world: World, project_id: str) -> dict[str, int]:
    """A project's limits: its own, else the default ones. A type's resource that is not among them has none."""
    with world.db.read() as session:
        return _limits(session, world.settings, project_id)


def _limits(session: Session, settings: Settings, project_id: str) -> dict[str, int]:
    return _over_defaults(session, settings, _OWN, project_id)


def _over_defaults(session: Session, settings: Settings, limits: CompoundSelect[Any], whose: str) -> dict[str, int]:
    """The configured limits, over them those of the default class, over them somebody's own; in one statement."""
    merged = configured(settings)
    for _rank, resource, limit in sorted(session.execute(limits, {"whose": whose}).all()):
        merged[resource] = limit
    return merged


def _with_defaults(
    table: type[models.Quota | models.QuotaClass], whose: InstrumentedAttribute[str]
) -> CompoundSelect[Any]:
    default = select(literal(0), models.QuotaClass.resource, models.QuotaClass.limit)
    own = select(literal(1), table.resource, table.limit).where(whose == bindparam("whose"))
    return union_all(default.where(models.QuotaClass.class_name == DEFAULT_CLASS), own)


# Every request that makes something asks these, so they are not put together anew each time.
_OWN = _with_defaults(models.Quota, models.Quota.project_id)
_OF_CLASS = _with_defaults(models.QuotaClass, models.QuotaClass.class_name)


def of_class(world: World, class_name: str) -> dict[str, int]:
    """The limits of a class of projects: its own, else the default ones."""
    with world.db.read() as session:
        return _over_defaults(session, world.settings, _OF_CLASS, class_name)


def of_type(name: str) -> list[str]:
    """The resources of which there are limits for each type."""
    return [f"{resource}_{name}" for resource in types.BY_TYPE]


def usage(world: World, project_id: str) -> dict[str, int]:
    """What a project uses of each resource now."""
    with world.db.read() as session:
        return dict.fromkeys(configured(world.settings), 0) | _usage(session, project_id)


def _usage(session: Session, project_id: str) -> dict[str, int]:
    """Counts and GiB of everything, summed from the rows."""
    backups, groups = models.Backup, models.Group
    count, gigabytes = session.execute(
        select(func.count(), func.coalesce(func.sum(backups.size), 0)).where(
            backups.project_id == project_id, backups.status != "deleted"
        )
    ).one()
    held = session.scalar(select(func.count()).select_from(groups).where(groups.project_id == project_id))
    return _volume_usage(session, project_id) | {
        "backups": int(count), "backup_gigabytes": int(gigabytes), "groups": held or 0
    }  # fmt: skip


def _volume_usage(session: Session, project_id: str) -> dict[str, int]:
    """Counts and GiB of volumes and snapshots, in all and by type where there are any, in one statement."""
    used = dict.fromkeys(("volumes", "snapshots", "gigabytes"), 0)
    for resource, kind, count, gigabytes in session.execute(_USED, {"project": project_id}):
        for name, amount in ((resource, count), ("gigabytes", gigabytes)):
            used[name] += int(amount)
            used[f"{name}_{kind}"] = used.get(f"{name}_{kind}", 0) + int(amount)
    return used


def _by_type(table: Any, resource: str, size: Any, *also: ColumnElement[bool]) -> Select[Any, Any, Any, Any]:
    # Summed first, by what an index has in order, and named then: a type is looked up once and not for each row.
    summed = (
        select(table.volume_type_id, func.count().label("count"), func.coalesce(func.sum(size), 0).label("size"))
        .where(table.project_id == bindparam("project"), table.consumes_quota, *also)
        .group_by(table.volume_type_id)
        .subquery()
    )
    of_type = models.VolumeType.id == summed.c.volume_type_id
    return select(literal(resource), models.VolumeType.name, summed.c.count, summed.c.size).join(summed, of_type)


_USED = union_all(
    _by_type(models.Volume, "volumes", models.Volume.size, models.Volume.deleted.is_(False)),
    _by_type(models.Snapshot, "snapshots", models.Snapshot.volume_size),
)


_LOCK = (
    select(models.ProjectLock.project_id).where(models.ProjectLock.project_id == bindparam("project")).with_for_update()
)


def lock(session: Session, project_id: str) -> None:
    """Make every other transaction that counts this project wait until this one ends.

    Must be the first statement of its transaction, so that what is summed afterwards is what others committed.
    """
    if session.execute(_LOCK, {"project": project_id}).first() is None:
        make_and_lock(session, models.ProjectLock, project_id=project_id)


def admit_volume(session: Session, settings: Settings, project_id: str, kind: models.VolumeType, size: int) -> None:
    """Refuse a further volume of a type and of `size` GiB that the quota does not allow. Call under `lock`."""
    _admit(session, settings, project_id, {"gigabytes": size, "volumes": 1}, kind, largest=size)


def admit_extend(
    session: Session, settings: Settings, project_id: str, kind: models.VolumeType, sizes: tuple[int, int]
) -> None:
    """Refuse to make a volume bigger, from and to the `sizes` in GiB, if the quota does not allow it."""
    old, new = sizes
    _admit(session, settings, project_id, {"gigabytes": new - old}, kind, largest=new)


def admit_retype(
    session: Session, settings: Settings, project_id: str, kind: models.VolumeType, sizes: Sequence[int]
) -> None:
    """Refuse a volume in a type's own quota, with `sizes` its own and those of the snapshots that get the type with it.

    The project's quota as a whole does not change.
    """
    snapshots = {"snapshots": len(sizes) - 1} if len(sizes) > 1 else {}
    _admit(session, settings, project_id, {"gigabytes": sum(sizes), "volumes": 1} | snapshots, kind, only_of_type=True)


def admit_transfer(
    session: Session, settings: Settings, project_id: str, kind: models.VolumeType, sizes: Sequence[int]
) -> None:
    """Refuse a volume from another project, with `sizes` its own and those of the snapshots with it. Under `lock`."""
    snapshots = {"snapshots": len(sizes) - 1} if len(sizes) > 1 else {}
    wanted = {"gigabytes": sum(sizes), "volumes": 1} | snapshots
    _admit(session, settings, project_id, wanted, kind, largest=sizes[0])


def admit_snapshot(session: Session, settings: Settings, project_id: str, kind: models.VolumeType, size: int) -> None:
    """Refuse a further snapshot of a volume of `size` GiB. Call under `lock`."""
    _admit(session, settings, project_id, {"gigabytes": size, "snapshots": 1}, kind)


def admit_backup(session: Session, settings: Settings, project_id: str, size: int) -> None:
    """Refuse a further backup of `size` GiB. Call under `lock`."""
    _admit(session, settings, project_id, {"backup_gigabytes": size, "backups": 1})


def admit_group(session: Session, settings: Settings, project_id: str) -> None:
    """Refuse a further group. Call under `lock`."""
    _admit(session, settings, project_id, {"groups": 1})


def _admit(
    session: Session,
    settings: Settings,
    project_id: str,
    wanted: Mapping[str, int],
    kind: models.VolumeType | None = None,
    *,
    largest: int = 0,
    only_of_type: bool = False,
) -> None:
    allowed = _limits(session, settings, project_id)
    if 0 <= allowed["per_volume_gigabytes"] < largest:
        raise errors.VolumeSizeExceedsLimit(largest, allowed["per_volume_gigabytes"])
    count = _usage if wanted.keys() & {"backups", "groups"} else _volume_usage
    used = count(session, project_id)
    if kind is not None and any(allowed.get(name, -1) >= 0 for name in of_type(kind.name)):
        _add_retyping(session, project_id, kind, used)
    for resource, amount in wanted.items():
        for name in ([] if only_of_type else [resource]) + ([f"{resource}_{kind.name}"] if kind else []):
            limit, have = allowed.get(name, -1), used.get(name, 0)
            if 0 <= limit < have + amount:
                raise _over(resource, name, amount, limit, have)


def _add_retyping(session: Session, project_id: str, kind: models.VolumeType, used: dict[str, int]) -> None:
    """Count also the volumes that are being given a type but do not have it yet."""
    table = models.Volume
    busy = select(table.intent, table.size).where(
        table.project_id == project_id,
        table.busy == 1,
        table.status == "retyping",
        table.volume_type_id != kind.id,
        table.consumes_quota,
    )
    for intent, size in session.execute(busy):
        if intent is not None and intent.get("volume_type_id") == kind.id:
            for name, amount in ((f"volumes_{kind.name}", 1), (f"gigabytes_{kind.name}", size)):
                used[name] = used.get(name, 0) + amount


def _over(resource: str, name: str, amount: int, limit: int, have: int) -> errors.OverQuota:
    if resource.startswith("gigabytes"):
        return errors.VolumeSizeExceedsAvailableQuota(name, amount, limit, have)
    if resource == "backup_gigabytes":
        return errors.BackupSizeExceedsAvailableQuota(amount, limit, have)
    return errors.LimitExceeded(resource.rstrip("s").capitalize(), resource, limit, name)


def update(ctx: Context, project_id: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Set a project's own limits and return all of them. Raises InvalidInput on a name or value that cannot be."""
    _refuse_unknown(ctx, wanted, "quota set")
    used = usage(ctx.world, project_id)
    for resource, limit in wanted.items():
        if 0 <= limit < used.get(resource, 0):
            raise errors.InvalidInput(
                f"Quota limit {limit} for {resource} must be equal or greater than the {used[resource]} already used"
            )
    with refusing(_CHANGING), ctx.world.db.write() as session:
        for resource, limit in wanted.items():
            session.merge(models.Quota(project_id=project_id, resource=resource, limit=limit))
    return limits(ctx.world, project_id)


def update_class(ctx: Context, class_name: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Set limits of a class of projects and return all of them. Raises InvalidInput on a name that cannot be."""
    _refuse_unknown(ctx, wanted, "quota class set")
    with refusing(_CHANGING), ctx.world.db.write() as session:
        for resource, limit in wanted.items():
            session.merge(models.QuotaClass(class_name=class_name, resource=resource, limit=limit))
    return of_class(ctx.world, class_name)


def _refuse_unknown(ctx: Context, wanted: Mapping[str, int], where: str) -> None:
    known = set(configured(ctx.settings))
    with ctx.world.db.read() as session:
        for name in session.scalars(select(models.VolumeType.name)):
            known.update(of_type(name))
    if unknown := sorted(wanted.keys() - known):
        raise errors.InvalidInput(f"Bad key(s) in {where}: {', '.join(unknown)}")


def reset(ctx: Context, project_id: str) -> None:
    """Give a project the default limits again."""
    with ctx.world.db.write() as session:
        session.execute(sqlalchemy.delete(models.Quota).where(models.Quota.project_id == project_id))
