# SPDX-License-Identifier: Apache-2.0
"""Giving a volume another type, and moving it to another pool of its cluster.

A move is RBD's live migration of a volume that nobody has open; its snapshots and clones go along. What a newcomer
gets wrong: a type is more than a name. Whether the volume may stay where it is decides `placement`, and what it would
have to become (encrypted, multi-attached, limited) decides whether the change is possible at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.core import encryption, holders, placement, pools, quotas, services, types, volumes
from cinderlite.db import models

NEVER, ON_DEMAND = "never", "on-demand"


def retype(ctx: Context, volume: models.Volume, wanted: str, policy: str = NEVER, *, may_share: bool = True) -> None:
    """Give a volume another type, by name or id; with the policy on-demand it may be moved for that.

    `may_share` says whether it may become one for several servers, or cease to be. Raises Forbidden, InvalidVolume,
    InvalidInput when it would have to move and may not, VolumeTypeNotFound, OverQuota.
    """
    where = ctx.world.backend(volume.host)
    where.cluster.check()
    pools.learn(ctx.world)
    within_reach = _same_cluster(ctx.world, where)
    with ctx.world.db.write() as session:
        quotas.lock(session, volume.project_id)
        current = volumes.lock(session, volume.id)
        kind = types.for_new_volume(ctx, session, wanted)
        _refuse_impossible(session, current, kind)
        if types.is_multiattach(kind) != current.multiattach and not may_share:
            raise errors.Forbidden(types.SHARING)
        quotas.admit_retype(session, ctx.settings, current.project_id, kind, _counted(session, current))
        target = _place(ctx, session, current, kind, within_reach)
        if target is not where and (policy != ON_DEMAND or current.status != "available"):
            raise errors.InvalidInput(
                f"Retype requires migration of volume {volume.id}, which its status or the policy does not allow."
            )
        verb = "retype" if target is where else "retype_and_move"
        if target is not where:
            _refuse_held(session, current)
        owner = volumes.LIFECYCLE.begin(
            session,
            volume.id,
            verb,
            ctx.settings.lease,
            ctx.request_id,
            volumes.AT_REST,
            volume_type_id=kind.id,
            multiattach=types.is_multiattach(kind),
            host=target.pool,
        )
        if owner is not None and target is not where:
            current.migration_status = "migrating"
    _run(ctx, volume, owner)


def _counted(session: Session, volume: models.Volume) -> list[int]:
    """The sizes that count for the volume's project: its own first, then those of its snapshots."""
    table = models.Snapshot
    own = select(table.volume_size).where(
        table.volume_id == volume.id, table.project_id == volume.project_id, table.consumes_quota
    )
    return [volume.size, *session.scalars(own)]


def _place(
    ctx: Context, session: Session, volume: models.Volume, kind: models.VolumeType, among: list[Backend]
) -> Backend:
    """Where a volume of a type is to be: where it is if that fits, else the best of the others. Raises NoBackend."""
    stay = placement.Demand(types.extra_specs(kind), (volume.availability_zone,))
    if stay.refusal(ctx.world, among[0]) is None:
        return among[0]
    go = dataclasses.replace(stay, size=volume.size, closed=services.closed(session, ctx.world))
    return placement.best(ctx, go, among[1:] or among)[0]


def _refuse_impossible(session: Session, volume: models.Volume, kind: models.VolumeType) -> None:
    if volume.volume_type_id == kind.id:
        raise errors.InvalidInput(f"volume {volume.id} has that type already")
    if volume.group_id is not None:
        raise errors.InvalidVolume(f"volume {volume.id} is in a group")
    present = session.get_one(models.VolumeType, volume.volume_type_id)
    session.refresh(present, ["extra_spec_rows"])
    if volume.status != "available":
        if types.is_multiattach(present) != types.is_multiattach(kind):
            raise errors.InvalidInput("Retyping a volume from or to multi-attach needs it to be available.")
        if present.qos_specs_id != kind.qos_specs_id:
            raise errors.InvalidInput("Retyping a volume in use to a type with other QoS specs is not possible.")
    if not encryption.is_alike(session, present.id, kind.id):
        raise errors.InvalidInput(
            "Retyping a volume to or from a type with encryption, or with another one, is not possible."
        )
    if volume.encrypted and types.is_multiattach(kind):
        raise errors.InvalidInput("Multiattach cannot be used with an encrypted volume.")


def migrate(ctx: Context, volume: models.Volume, host: str) -> None:
    """Move a volume to the pool `host@backend#pool`, if its type may be there.

    Raises InvalidVolume, InvalidInput, InvalidHost.
    """
    where = ctx.world.backend(volume.host)
    target = _target(ctx, host)
    if target is where:
        raise errors.InvalidInput(f"Volume {volume.id} is on {host} already.")
    where.cluster.check()
    if target not in _same_cluster(ctx.world, where):
        raise errors.InvalidInput(f"{target.pool} is in another Ceph cluster than {where.pool}.")
    with ctx.world.db.write() as session:
        if target.name in services.closed(session, ctx.world):
            raise errors.InvalidHost(host)
        current = volumes.lock(session, volume.id)
        _refuse_unfit(session, current, target)
        _refuse_held(session, current)
        owner = volumes.LIFECYCLE.begin(
            session,
            volume.id,
            "migrate",
            ctx.settings.lease,
            ctx.request_id,
            volumes.AT_REST,
            models.Volume.group_id.is_(None),
            host=target.pool,
        )
        if owner is not None:
            current.migration_status = "migrating"
    _run(ctx, volume, owner)


def _refuse_unfit(session: Session, volume: models.Volume, target: Backend) -> None:
    """Raise InvalidInput for a back end where volumes of that type must not be: nothing could be cloned there."""
    kind = session.get_one(models.VolumeType, volume.volume_type_id)
    session.refresh(kind, ["extra_spec_rows"])
    if not placement.fits(target, kind, target.availability_zone):
        raise errors.InvalidInput(f"volumes of type {kind.name} cannot be on {target.pool}")


def _refuse_held(session: Session, volume: models.Volume) -> None:
    """Raise InvalidVolume for a volume that another is being made from, or with data that cannot move along.

    Those are in a snapshot of several images.
    """
    volumes.refuse_source(session, volume.id)
    table = models.Snapshot
    held = select(table.id).where(table.volume_id == volume.id, table.group_snap.is_not(None)).limit(1)
    if session.scalar(held) is not None:
        raise errors.InvalidVolume(f"volume {volume.id} has a snapshot that it shares with other volumes")


def _target(ctx: Context, host: str) -> Backend:
    for backend in ctx.world.backends.values():
        if backend.pool == host:
            return backend
    raise errors.InvalidHost(host)


def _same_cluster(world: World, where: Backend) -> list[Backend]:
    """The back ends that a volume of one can be moved to, itself first; one that does not answer is not among them."""
    found = [where]
    for other in world.backends.values():
        with contextlib.suppress(errors.Unavailable):
            if other is not where and other.cluster.fsid() == where.cluster.fsid():
                found.append(other)
    return found


def _run(ctx: Context, volume: models.Volume, owner: str | None) -> None:
    if owner is None:
        now = volumes.get(ctx, volume.id)
        raise errors.InvalidVolume(
            f"Volume {volume.id} cannot be moved or retyped in status {now.status}, in a group, or while it moves."
        )
    volumes.LIFECYCLE.run(ctx.world, volume.id, owner)


def _retyped(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in ("volume_type_id", "multiattach")}


def _moved(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    target = world.backend(arguments["host"])
    holders.leave_off(world, volume.id)
    world.cluster(volume.host).move(volume.image, target.cluster.pool)
    return {"host": target.pool, "availability_zone": target.availability_zone, "migration_status": "success"}


@volumes.LIFECYCLE.step("retype")
def _retype(_world: World, _volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _retyped(arguments)


volumes.LIFECYCLE.step("migrate")(_moved)


@volumes.LIFECYCLE.step("retype_and_move")
def _retype_and_move(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _moved(world, volume, arguments) | _retyped(arguments)
