# SPDX-License-Identifier: Apache-2.0
"""Snapshots of all volumes of a group, and new groups from them or from other groups.

What the type of a group promises decides how its snapshot is taken. By default the volumes are snapshot one after
another. A *consistent* one holds one moment of all volumes, even while servers write to them: Ceph takes that as a
snapshot of several images, which can be read but not cloned. So ordinary snapshots are taken first, and those whose
volume was not written to until that moment hold it too; they stay. Only the others are `held` by Ceph's group
snapshot, and volumes are made from them by copying.

What a newcomer gets wrong: the member snapshots have no intent of their own. Their group snapshot does the work for
all of them and settles them with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, select
from sqlalchemy.orm import Session, joinedload

from cinderlite import errors, jobs
from cinderlite.context import Context, World
from cinderlite.core import freezes, group_types, groups, messages, quotas, services, snapshots, states, volumes
from cinderlite.core.states import GONE, Move
from cinderlite.db import models

LIFECYCLE = states.Machine(
    models.GroupSnapshot,
    #    verb      from                            through     then         on failure
    Move("create", frozenset({"new"}),                "creating", "available", "error", long=True),
    Move("delete", frozenset({"available", "error"}), "deleting", GONE,        "error_deleting", long=True),
)  # fmt: skip


def visible(ctx: Context, *, all_projects: bool = False, reserved: bool = False) -> Select[models.GroupSnapshot]:
    """The group snapshots that the caller may see, or the `reserved` ones: those of consistency groups."""
    table = models.GroupSnapshot
    is_reserved = table.group_type_id.in_(
        select(models.GroupType.id).where(models.GroupType.name == group_types.RESERVED)
    )
    query = select(table).where(is_reserved if reserved else ~is_reserved)
    if not (ctx.is_admin and all_projects):
        query = query.where(table.project_id == ctx.project_id)
    return query


def get(ctx: Context, snapshot_id: str) -> models.GroupSnapshot:
    """The group snapshot of that id. Raises GroupSnapshotNotFound, BadRequest for that of a consistency group."""
    with ctx.world.db.read() as session:
        found = find(ctx, session, snapshot_id)
    groups.refuse_reserved(found.group_type)
    return found


def get_reserved(ctx: Context, snapshot_id: str) -> models.GroupSnapshot:
    """The snapshot of a consistency group. Raises GroupSnapshotNotFound."""
    with ctx.world.db.read() as session:
        found = find(ctx, session, snapshot_id)
    if found.group_type.name != group_types.RESERVED:
        raise errors.GroupSnapshotNotFound(snapshot_id)
    return found


def find(ctx: Context, session: Session, snapshot_id: str) -> models.GroupSnapshot:
    """Any group snapshot in a transaction. Raises GroupSnapshotNotFound, also for another project's."""
    table = models.GroupSnapshot
    query = select(table).where(table.id == snapshot_id).options(joinedload(table.group_type))
    found = session.scalars(query).one_or_none()
    if found is None or not (ctx.is_admin or found.project_id == ctx.project_id):
        raise errors.GroupSnapshotNotFound(snapshot_id)
    return found


def members(session: Session, snapshot_id: str) -> Sequence[models.Snapshot]:
    """The snapshots that a group snapshot consists of, with their volumes."""
    table = models.Snapshot
    query = select(table).where(table.group_snapshot_id == snapshot_id).options(joinedload(table.volume))
    return session.scalars(query.order_by(table.created_at, table.id)).all()


# -- taking one


def create(
    ctx: Context, group: models.Group, *, name: str | None = None, description: str | None = None
) -> models.GroupSnapshot:
    """Take a snapshot of every volume of a group; the row as accepted.

    Raises InvalidGroup (not available, or empty), InvalidVolume, OverQuota, CephUnavailable.
    """
    ctx.world.cluster(group.host).check()
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        current = groups.hold(session, group.id)
        if current.status != "available" or current.busy:
            raise errors.InvalidGroup(f"group {group.id} must be available, but is {current.status}")
        present = groups.members(session, group.id, hold=True)
        if not present:
            raise errors.InvalidGroup(f"group {group.id} has no volumes")
        consistent = group_types.is_consistent(current.group_type) and len(present) > 1
        if consistent:
            _refuse_several_writers(session, present)
            _refuse_apart(present)
        row = models.GroupSnapshot(
            id=models.new_id(),
            group_id=group.id,
            group_type_id=current.group_type_id,
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            name=name,
            description=description,
        )
        for volume in present:
            taken = snapshots.new(
                ctx, session, volume, in_use=True, name=name, description=description, group_snapshot_id=row.id
            )
            taken.status = "creating"
            session.add(taken)
        owner = LIFECYCLE.start(row, "create", ctx.settings.lease, ctx.request_id, consistent=consistent)
        session.add(row)
    LIFECYCLE.run(ctx.world, row.id, owner)
    return row


def _refuse_several_writers(session: Session, present: Sequence[models.Volume]) -> None:
    """Raise InvalidVolume for attached volumes that may have several writers: nothing makes all of those wait."""
    shared = [volume.id for volume in present if volume.multiattach]
    attached = select(models.Attachment.volume_id).where(models.Attachment.volume_id.in_(shared)).limit(1)
    if (found := session.scalar(attached)) is not None:
        raise errors.InvalidVolume(
            f"volume {found} may have several writers: while it is attached, no moment of its group can be held"
        )


def _refuse_apart(present: Sequence[models.Volume]) -> None:
    """Raise InvalidVolume for volumes in several namespaces, as when some are older than those: RBD groups have one."""
    if len({volume.namespace for volume in present}) > 1:
        raise errors.InvalidVolume("the group's images are in several namespaces, of which no moment can be held")


def _undisturbed(world: World, row: models.GroupSnapshot) -> Sequence[models.Snapshot]:
    """Its snapshots, after the guests of their volumes were asked; raises what that raises."""
    with world.db.read() as session:
        found = members(session, row.id)
    for one in found:
        snapshots.ask_guests(world, one.volume_id)
    return found


@LIFECYCLE.step("create")
def _create(world: World, row: models.GroupSnapshot, arguments: Mapping[str, Any]) -> None:
    taken = _undisturbed(world, row)
    with states.while_busy(arguments), freezes.frozen(world, [one.volume_id for one in taken]):
        for one in taken:
            jobs.checkpoint()
            world.cluster_of(one.volume).snapshot(one.volume.image, one.snap)
        if arguments["consistent"]:
            try:
                _hold_moment(world, row, taken)
            except errors.CephError:  # It failed for good, or the next try takes a moment of its own.
                _forget_moment(world, row, taken)
                raise


def _hold_moment(world: World, row: models.GroupSnapshot, taken: Sequence[models.Snapshot]) -> None:
    """Have the members hold one moment: that of Ceph's group snapshot, which stays for those that do not yet."""
    cluster = world.cluster_of(taken[0].volume)
    try:
        cluster.group_snapshot(row.snap, [one.volume.image for one in taken])
    except errors.ImageBusy as error:
        if _others_are_taken(world, row):
            raise errors.MembersBusy(row.group_id) from error
        raise
    late = {one.id for one in taken if _is_late(world, row, one)}
    with world.db.write() as session:
        for one in members(session, row.id):
            one.group_snap = row.snap if one.id in late else None
    for one in taken:
        if one.id in late:
            cluster.remove_snapshot(one.volume.image, one.snap)
    if not late:
        _forget_moment(world, row, taken)


def _forget_moment(world: World, row: models.GroupSnapshot, taken: Sequence[models.Snapshot]) -> None:
    """Remove what Ceph holds of that moment."""
    world.cluster_of(taken[0].volume).remove_group_snapshot(row.snap, [one.volume.image for one in taken])


def _others_are_taken(world: World, row: models.GroupSnapshot) -> bool:
    """Whether another group snapshot is under way, and an image in its hands."""
    table = models.GroupSnapshot
    others = select(table.id).where(table.id != row.id, table.status == "creating", table.busy == 1).limit(1)
    with world.db.read() as session:
        return session.scalar(others) is not None


def _is_late(world: World, row: models.GroupSnapshot, one: models.Snapshot) -> bool:
    """Whether something was written between the ordinary snapshot and the moment, or the other way round."""
    jobs.checkpoint()
    with world.cluster_of(one.volume).opened(one.volume.image, row.snap) as held:
        return held.chunks(since=one.snap) != []


# -- its end


def delete(ctx: Context, row: models.GroupSnapshot) -> None:
    """Delete a group snapshot and all that is in it. Raises InvalidGroupSnapshot, InvalidInput on a frozen back end."""
    with ctx.world.db.write() as session:
        for one in (present := members(session, row.id)):
            services.refuse_frozen(session, one.volume.host)
            volumes.lock(session, one.volume_id, gone=True)
        ready = all(one.status in snapshots.DELETABLE and not one.busy for one in present)
        owner = None
        if ready:
            owner = LIFECYCLE.begin(
                session, row.id, "delete", ctx.settings.lease, ctx.request_id, *_nobody_copies(row, present)
            )
        if owner is None:
            find(ctx, session, row.id)  # Gone meanwhile is a 404, not a wrong state.
            raise errors.InvalidGroupSnapshot(
                "its status and that of its snapshots must be available or error, and nothing may be on its way from it"
            )
        for one in present:
            one.previous_status, one.status = one.status, "deleting"
    LIFECYCLE.run(ctx.world, row.id, owner)


def _nobody_copies(row: models.GroupSnapshot, present: Sequence[models.Snapshot]) -> list[ColumnElement[bool]]:
    """That no group and no volume is being made from it."""
    group, volume = models.Group, models.Volume
    return [
        ~exists().where(group.group_snapshot_id == row.id, group.busy == 1),
        ~exists().where(volume.snapshot_id.in_([one.id for one in present]), volume.status == "creating"),
    ]


@LIFECYCLE.step("delete")
def _delete(world: World, row: models.GroupSnapshot, arguments: Mapping[str, Any]) -> None:
    present = _undisturbed(world, row)
    with states.while_busy(arguments):
        for one in present:
            jobs.checkpoint()
            volumes.wait_for_move(one.volume)
            world.cluster_of(one.volume).remove_snapshot(one.volume.image, one.snap)
        if present:
            _forget_moment(world, row, present)


@LIFECYCLE.settled
def _settled(
    session: Session, row: models.GroupSnapshot, intent: Mapping[str, Any], error: errors.CinderliteError | None
) -> None:
    verb = intent["verb"]
    for one in members(session, row.id):
        if error is not None:
            one.status = "error" if verb == "create" else "error_deleting"
            messages.leave(session, one, verb, error.message, request_id=intent["request_id"])
        elif verb == "create":
            one.status, one.progress, one.updated_at = "available", "100%", models.utcnow()
        else:
            session.delete(one)


def reset_status(ctx: Context, row: models.GroupSnapshot, status: str) -> None:
    """Set the status by hand. Raises InvalidGroupSnapshot while an operation is under way: its end would be lost."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, row.id)
        if current.busy:
            raise errors.InvalidGroupSnapshot(f"an operation on it is under way ({current.status})")
        current.status, current.updated_at = status, models.utcnow()


# -- new groups


def create_group(
    ctx: Context,
    *,
    group_snapshot_id: str | None = None,
    source_group_id: str | None = None,
    name: str | None = None,
    description: str | None = None,
    reserved: bool = False,
) -> models.Group:
    """Make a group with a volume from each snapshot of a group snapshot, or from each volume of a group.

    It is available when all its volumes are. With `reserved` the source is a consistency group or its snapshot.
    Raises GroupNotFound, GroupSnapshotNotFound, InvalidGroup, InvalidSnapshot, InvalidVolume, OverQuota.
    """
    source = _source_group(ctx, group_snapshot_id, source_group_id, reserved=reserved)
    ctx.world.cluster(source.host).check()
    begun = []
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        quotas.admit_group(session, ctx.settings, ctx.project_id)
        group = groups.new(
            ctx,
            session.get_one(models.GroupType, source.group_type_id),
            {row.volume_type_id for row in source.volume_type_rows},
            name=name,
            description=description,
            host=source.host,
            availability_zone=source.availability_zone,
            group_snapshot_id=group_snapshot_id,
            source_group_id=source_group_id,
        )
        owner = groups.LIFECYCLE.start(group, "fill", ctx.settings.lease, ctx.request_id)
        session.add(group)
        session.flush()  # Its volumes look for it.
        for wanted in _wanted(session, group):
            volume, lease = volumes.begin(ctx, session, wanted)
            begun.append((volume.id, lease))
        if not begun:
            raise errors.InvalidGroup("the source is empty")
    for volume_id, lease in begun:
        volumes.LIFECYCLE.run(ctx.world, volume_id, lease)
    groups.LIFECYCLE.run(ctx.world, group.id, owner)
    return group


def _source_group(
    ctx: Context, group_snapshot_id: str | None, source_group_id: str | None, *, reserved: bool
) -> models.Group:
    """The group that a new one is to be like: the source, or that of which the source is a snapshot."""
    get_group = groups.get_reserved if reserved else groups.get
    if source_group_id is not None:
        return get_group(ctx, source_group_id)
    if group_snapshot_id is None:
        raise errors.InvalidInput("a new group needs a group or a group snapshot as its source")
    found = get_reserved(ctx, group_snapshot_id) if reserved else get(ctx, group_snapshot_id)
    return get_group(ctx, found.group_id)


def _wanted(session: Session, group: models.Group) -> list[volumes.Wanted]:
    """The volumes that a new group begins with."""
    if group.group_snapshot_id is not None:
        return [
            volumes.Wanted(one.volume_size, ("snapshot_id", one.id), one.volume_type_id, None, group_id=group.id)
            for one in members(session, group.group_snapshot_id)
        ]
    assert group.source_group_id is not None  # noqa: S101 -- `_source_group` looked
    return [
        volumes.Wanted(one.size, ("source_volid", one.id), one.volume_type_id, None, group_id=group.id)
        for one in groups.members(session, group.source_group_id)
    ]
