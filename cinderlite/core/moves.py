# SPDX-License-Identifier: Apache-2.0
"""Giving a volume another type, and moving it to another pool.

A move is RBD's live migration of a volume that nobody has open; its snapshots and clones go along. What a server has
open QEMU has to move (`mirrors`), which takes the volume alone along but goes to other clusters, too. What a newcomer
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
from cinderlite.core import (
    cephx_users,
    encryption,
    holders,
    limits,
    mirrors,
    placement,
    pools,
    quotas,
    services,
    types,
    volumes,
)
from cinderlite.db import models

NEVER, ON_DEMAND = "never", "on-demand"


def retype(ctx: Context, volume: models.Volume, wanted: str, policy: str = NEVER, *, may_share: bool = True) -> None:
    """Give a volume another type, by name or id; with the policy on-demand it may be moved for that.

    `may_share` says whether it may become one for several servers, or cease to be. Raises Forbidden, InvalidVolume,
    InvalidInput when it would have to move and may not, InvalidQosSpecs, VolumeTypeNotFound, OverQuota.
    """
    where = ctx.world.backend(volume.host)
    where.cluster.check()
    pools.learn(ctx.world)
    ways = _ways(ctx, volume, where, may_move=policy == ON_DEMAND)
    with ctx.world.db.write() as session:
        quotas.lock(session, volume.project_id)
        current = volumes.lock(session, volume.id)
        kind = types.for_new_volume(ctx, session, wanted)
        _refuse_impossible(session, current, kind)
        if types.is_multiattach(kind) != current.multiattach and not may_share:
            raise errors.Forbidden(types.SHARING)
        quotas.admit_retype(session, ctx.settings, current.project_id, kind, _counted(session, current))
        target = _place(ctx, session, current, kind, [ctx.world.backends[name] for name in ways.clusters])
        if target is not where and (policy != ON_DEMAND or current.status not in ("available", "in-use")):
            raise errors.InvalidInput(
                f"Retype requires migration of volume {volume.id}, which its status or the policy does not allow."
            )
        verb, more = "retype", {}
        if target is not where:
            verb = "retype_and_mirror" if ways.in_use else "retype_and_move"
            more = _refuse_held(session, current, ways, target)
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
            **{"namespace": target.namespace_for(current.project_id), **more},
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
        _refuse_other_limits(session, volume, kind)
    if not encryption.is_alike(session, present.id, kind.id):
        raise errors.InvalidInput(
            "Retyping a volume to or from a type with encryption, or with another one, is not possible."
        )
    if volume.encrypted and types.is_multiattach(kind):
        raise errors.InvalidInput("Multiattach cannot be used with an encrypted volume.")


def _refuse_other_limits(session: Session, volume: models.Volume, kind: models.VolumeType) -> None:
    """Raise InvalidInput, InvalidQosSpecs if who has the volume open could not be held to the limits of a type.

    Somebody else was told what they were when he opened it, and does not ask again.
    """
    table = models.Attachment
    foreign = select(table.id).where(table.volume_id == volume.id, table.managed.is_(False)).limit(1)
    if session.scalar(foreign) is None:
        limits.refuse_flawed(session, volume, kind.id)
    elif (limits.told(session, volume) or {}) != (limits.told(session, volume, kind.id) or {}):
        raise errors.InvalidInput("Retyping a volume that another service plugged in to other limits is not possible.")


def migrate(ctx: Context, volume: models.Volume, host: str) -> None:
    """Move a volume to the pool `host@backend#pool`, if its type may be there.

    Raises InvalidVolume, InvalidInput, InvalidHost.
    """
    where = ctx.world.backend(volume.host)
    target = _target(ctx, host)
    if target is where:
        raise errors.InvalidInput(f"Volume {volume.id} is on {host} already.")
    where.cluster.check()
    target.cluster.check()
    pools.learn(ctx.world)
    ways = _ways(ctx, volume, where)
    if target.name not in ways.clusters:
        raise errors.InvalidInput(f"{target.pool} is in another Ceph cluster than {where.pool}.")
    with ctx.world.db.write() as session:
        if target.name in services.closed(session, ctx.world):
            raise errors.InvalidHost(host)
        current = volumes.lock(session, volume.id)
        _refuse_unfit(ctx, session, current, target)
        more = _refuse_held(session, current, ways, target)
        owner = volumes.LIFECYCLE.begin(
            session,
            volume.id,
            "mirror" if ways.in_use else "migrate",
            ctx.settings.lease,
            ctx.request_id,
            volumes.AT_REST,
            models.Volume.group_id.is_(None),
            host=target.pool,
            **{"namespace": target.namespace_for(current.project_id), **more},
        )
        if owner is not None:
            current.migration_status = "migrating"
    _run(ctx, volume, owner)


def _refuse_unfit(ctx: Context, session: Session, volume: models.Volume, target: Backend) -> None:
    """Raise InvalidInput for a back end where volumes of that type must not be, or that has no room for this one.

    Nothing could be cloned in the former, and Ceph lets those wait who write to a full pool.
    """
    kind = session.get_one(models.VolumeType, volume.volume_type_id)
    session.refresh(kind, ["extra_spec_rows"])
    demand = placement.Demand(types.extra_specs(kind), (target.availability_zone,), size=volume.size)
    refusal = demand.refusal(ctx.world, target)
    if refusal is not None:
        raise errors.InvalidInput(f"volume {volume.id}, of type {kind.name}, cannot be on {target.pool}: {refusal[0]}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Ways:
    """Where a volume can go from where it is, as was asked of Ceph before the transaction."""

    where: Backend
    #: Whether a server has it open.
    in_use: bool
    #: The clusters of the back ends that it can be moved to, by their names.
    clusters: Mapping[str, str]
    #: What its image has that would not move along.
    hindrance: errors.InvalidVolume | None = None


def _ways(ctx: Context, volume: models.Volume, where: Backend, *, may_move: bool = True) -> _Ways:
    """The ways of a volume: of its own cluster, or of any if it is in use. What does not answer is not among them."""
    in_use = volume.status == "in-use"
    clusters, hindrance = {where.name: where.cluster.fsid()}, None
    for other in ctx.world.backends.values():
        with contextlib.suppress(errors.Unavailable):
            cluster = other.cluster.fsid()
            if other is not where and (in_use or cluster == clusters[where.name]):
                clusters[other.name] = cluster
    if may_move:
        try:
            (mirrors.refuse_shared_data if in_use else cephx_users.refuse_open_clones)(ctx.world, volume)
        except errors.InvalidVolume as error:
            hindrance = error
    return _Ways(where, in_use, clusters, hindrance)


def _refuse_held(session: Session, volume: models.Volume, ways: _Ways, target: Backend) -> dict[str, Any]:
    """What else the intent of a move says.

    Raises InvalidVolume for a volume that another is being made from, while its snapshots or backups come or go, or
    with data that cannot move along: of one that nobody has open those are in a snapshot of several images.
    """
    volumes.refuse_source(session, volume.id)
    volumes.refuse_work_beside(session, volume.id)
    more = mirrors.plan(session, volume, ways.where, target, ways.clusters) if ways.in_use else {}
    if ways.hindrance is not None:
        raise ways.hindrance
    if ways.in_use:
        return more
    table = models.Snapshot
    held = select(table.id).where(table.volume_id == volume.id, table.group_snap.is_not(None)).limit(1)
    if session.scalar(held) is not None:
        raise errors.InvalidVolume(f"volume {volume.id} has a snapshot that it shares with other volumes")
    return {}


def _target(ctx: Context, host: str) -> Backend:
    for backend in ctx.world.backends.values():
        if backend.pool == host:
            return backend
    raise errors.InvalidHost(host)


def _run(ctx: Context, volume: models.Volume, owner: str | None) -> None:
    if owner is None:
        now = volumes.get(ctx, volume.id)
        raise errors.InvalidVolume(
            f"Volume {volume.id} cannot be moved or retyped in status {now.status}, in a group, or while it moves."
        )
    volumes.LIFECYCLE.run(ctx.world, volume.id, owner)
    ctx.world.wake.set()  # For the limits of the new type.


def _retyped(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in ("volume_type_id", "multiattach")} | limits.due()


def _moved(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    target = world.backend(arguments["host"])
    holders.leave_off(world, volume.id)
    namespace = arguments.get("namespace", "")
    world.cluster_of(volume).move(volume.image, target.cluster.pool, namespace)
    return {
        "host": target.pool,
        "namespace": namespace,
        "availability_zone": target.availability_zone,
        "migration_status": "success",
    }


@volumes.LIFECYCLE.step("hand_over")
def _hand_over(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Move a volume to the namespace of the project that it belongs to now, with all that it shared with the former."""
    namespace = arguments["namespace"]
    holders.leave_off(world, volume.id)
    there = world.cluster_of(volume)
    there.move(volume.image, there.pool, namespace)
    here = there.within(namespace)
    if any(parent.namespace not in ("", namespace) for parent in here.portrait(volume.image).parents):
        here.make_whole(volume.image)
        return {"namespace": namespace, "clone_depth": 0}
    return {"namespace": namespace}


@volumes.LIFECYCLE.step("retype")
def _retype(_world: World, _volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _retyped(arguments)


volumes.LIFECYCLE.step("migrate")(_moved)
volumes.LIFECYCLE.step("mirror")(mirrors.move)


@volumes.LIFECYCLE.step("retype_and_move")
def _retype_and_move(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _moved(world, volume, arguments) | _retyped(arguments)


@volumes.LIFECYCLE.step("retype_and_mirror")
def _retype_and_mirror(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return mirrors.move(world, volume, arguments) | _retyped(arguments)
