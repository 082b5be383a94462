# SPDX-License-Identifier: Apache-2.0
"""Groups of volumes: who is in them, what may join, and how they end.

A group is a row and nothing in Ceph: its volumes name it, and all of them are on its back end. What a newcomer gets
wrong: whoever puts a volume into a group holds the group's row until that is committed (`hold`), and who ends a group
takes the row first; so no volume joins a group that is on its way out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, exists, select
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.context import Backend, Context, World
from cinderlite.core import group_types, placement, quotas, services, states, types, volumes
from cinderlite.core.states import GONE, Move
from cinderlite.db import models

#: Every status that a group may have, by itself or set by hand.
ANY = frozenset({"available", "creating", "deleted", "deleting", "error", "error_deleting", "in-use", "updating"})
#: Statuses of volumes that may join a group, and of those that may leave it.
JOINING = ("available", "in-use")
LEAVING = ("available", "in-use", "error", "error_deleting")

#: Seconds at most between two looks whether the members are ready: so much longer than the last of them it takes.
_LOOKS = 4.0
LIFECYCLE = states.Machine(
    models.Group,
    #    verb      from                            through     then         on failure
    Move("fill",   frozenset({"new"}),                "creating", "available", "error", patience=_LOOKS),
    Move("delete", frozenset({"available", "error"}), "deleting", GONE,        "error_deleting", patience=_LOOKS),
)  # fmt: skip

#: What the API shows is loaded with the rows.
SHOWN = (
    joinedload(models.Group.group_type).selectinload(models.GroupType.spec_rows),
    selectinload(models.Group.volume_type_rows),
)


def visible(ctx: Context, *, all_projects: bool = False, reserved: bool = False) -> Select[models.Group]:
    """The groups that the caller may see, or the `reserved` ones: consistency groups.

    An administrator asks for all projects explicitly.
    """
    is_reserved = models.Group.group_type_id.in_(
        select(models.GroupType.id).where(models.GroupType.name == group_types.RESERVED)
    )
    query = select(models.Group).where(is_reserved if reserved else ~is_reserved)
    if not (ctx.is_admin and all_projects):
        query = query.where(models.Group.project_id == ctx.project_id)
    return query


def get(ctx: Context, group_id: str) -> models.Group:
    """The group of that id, with all that is shown of it. Raises GroupNotFound, BadRequest for a consistency group."""
    with ctx.world.db.read() as session:
        found = find(ctx, session, group_id)
    refuse_reserved(found.group_type)
    return found


def get_reserved(ctx: Context, group_id: str) -> models.Group:
    """The consistency group of that id. Raises GroupNotFound."""
    with ctx.world.db.read() as session:
        found = find(ctx, session, group_id)
    if found.group_type.name != group_types.RESERVED:
        raise errors.GroupNotFound(group_id)
    return found


def find(ctx: Context, session: Session, group_id: str) -> models.Group:
    """Any group in a transaction. Raises GroupNotFound, also for another project's."""
    found = session.scalars(select(models.Group).where(models.Group.id == group_id).options(*SHOWN)).one_or_none()
    if found is None or not (ctx.is_admin or found.project_id == ctx.project_id):
        raise errors.GroupNotFound(group_id)
    return found


def refuse_reserved(kind: models.GroupType) -> None:
    """Raise BadRequest for the type of consistency groups, which have an API of their own."""
    if kind.name == group_types.RESERVED:
        raise errors.BadRequest(f"Groups of type {kind.id} are consistency groups: only their own API works on them.")


def with_volumes(ctx: Context, group: models.Group) -> models.Group:
    """The group again, with its volumes."""
    query = select(models.Group).where(models.Group.id == group.id)
    with ctx.world.db.read() as session:
        found = session.scalars(query.options(*SHOWN, selectinload(models.Group.volumes))).one_or_none()
    if found is None:
        raise errors.GroupNotFound(group.id)
    return found


def members(session: Session, group_id: str, *, hold: bool = False) -> Sequence[models.Volume]:
    """The volumes of a group, oldest first; with `hold` nobody else changes them before the transaction ends."""
    table = models.Volume
    query = select(table).where(table.group_id == group_id, table.deleted.is_(False))
    if hold:
        query = query.with_for_update().execution_options(populate_existing=True)
    return session.scalars(query.order_by(table.created_at, table.id)).all()


def create(
    ctx: Context,
    *,
    group_type: str,
    volume_types: Sequence[str],
    name: str | None = None,
    description: str | None = None,
    availability_zone: str | None = None,
    reserved: bool = False,
) -> models.Group:
    """Create a group of a type, by name or id, that takes volumes of some volume types; with `reserved` of that type.

    As in Cinder it is accepted before a place is looked for: if there is none, its status is `error`. Raises
    GroupTypeNotFound, VolumeTypeNotFound, InvalidInput, OverQuota.
    """
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        kind = group_types.resolve(ctx, session, group_type)
        if not reserved:
            refuse_reserved(kind)
        kinds = [types.resolve(ctx, session, one) for one in volume_types]
        backend, zone, fits = _place(ctx, session, kinds, availability_zone)
        quotas.admit_group(session, ctx.settings, ctx.project_id)
        group = new(ctx, kind, {one.id for one in kinds}, name=name, description=description)
        group.host, group.availability_zone, group.status = backend.pool, zone, "available" if fits else "error"
        session.add(group)
    return group


def new(ctx: Context, kind: models.GroupType, volume_type_ids: Collection[str], **columns: Any) -> models.Group:
    """A row for a group of the caller's, which is not in the database yet."""
    return models.Group(
        id=models.new_id(),
        project_id=ctx.project_id,
        user_id=ctx.user_id,
        group_type=kind,
        volume_type_rows=[models.GroupVolumeType(volume_type_id=one) for one in sorted(volume_type_ids)],
        **columns,
    )


def _place(
    ctx: Context, session: Session, kinds: Sequence[models.VolumeType], zone: str | None
) -> tuple[Backend, str, bool]:
    """A back end on which volumes of all the types may be, its zone, and whether there is one; else it is any."""
    first, found, _ = placement.choose(ctx, session, kinds[0], 1, zone=zone)
    for backend in (first, *ctx.world.backends.values()):
        if all(placement.fits(backend, kind, found) for kind in kinds):
            return backend, found, True
    return first, found, False


# -- who is in it


def update(
    ctx: Context,
    group: models.Group,
    *,
    name: str | None = None,
    description: str | None = None,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> None:
    """Change name or description, and let volumes join and leave. Raises InvalidGroup, InvalidVolume."""
    both = sorted(set(add) & set(remove))
    if both:
        raise errors.InvalidVolume(f"volumes cannot join and leave at once: {', '.join(both)}")
    with ctx.world.db.write() as session:
        current = hold(session, group.id)
        changes = {
            key: value
            for key, value in (("name", name), ("description", description))
            if value is not None and value != getattr(current, key)
        }
        present = {one.id: one for one in members(session, group.id, hold=True)}
        leaving = [_leaving(current, present, one) for one in remove]
        joining = [_joining(ctx, session, current, one) for one in add if one not in present]
        if not (changes or leaving or joining):
            raise errors.InvalidGroup(f"nothing was given that would change group {group.id}")
        if (leaving or joining) and (current.status != "available" or current.busy):
            raise errors.InvalidGroup(f"group {group.id} must be available, but is {current.status}")
        for volume in leaving:
            volume.group_id = None
        for volume in joining:
            volume.group_id = group.id
        for key, value in changes.items():
            setattr(current, key, value)
        current.updated_at = models.utcnow()


def hold(session: Session, group_id: str) -> models.Group:
    """The group's row, which nobody else changes before the transaction ends. Raises GroupNotFound."""
    query = select(models.Group).where(models.Group.id == group_id).options(*SHOWN)
    found = session.scalars(
        query.with_for_update(of=models.Group).execution_options(populate_existing=True)
    ).one_or_none()
    if found is None:
        raise errors.GroupNotFound(group_id)
    return found


def _leaving(group: models.Group, present: Mapping[str, models.Volume], volume_id: str) -> models.Volume:
    volume = present.get(volume_id)
    if volume is None:
        raise errors.InvalidVolume(f"volume {volume_id} is not in group {group.id}")
    if volume.status not in LEAVING:
        raise errors.InvalidVolume(
            f"volume {volume_id} cannot leave group {group.id} in status {volume.status}, only in {', '.join(LEAVING)}"
        )
    return volume


def _joining(ctx: Context, session: Session, group: models.Group, volume_id: str) -> models.Volume:
    try:
        volumes.find(ctx, session, volume_id)
        volume = volumes.lock(session, volume_id)
    except errors.VolumeNotFound as error:
        raise errors.InvalidVolume(f"volume {volume_id} cannot be found") from error
    if volume.group_id is not None:
        raise errors.InvalidVolume(f"volume {volume_id} is in group {volume.group_id} already")
    if volume.project_id != group.project_id:
        raise errors.InvalidVolume(f"volume {volume_id} and group {group.id} belong to different projects")
    if volume.volume_type_id not in {row.volume_type_id for row in group.volume_type_rows}:
        raise errors.InvalidVolume(f"group {group.id} takes no volumes of type {volume.volume_type_id}")
    if volume.status not in JOINING or volume.busy:
        raise errors.InvalidVolume(
            f"volume {volume_id} cannot join group {group.id} in status {volume.status}, only in {', '.join(JOINING)}"
        )
    if volume.host != group.host:
        raise errors.InvalidVolume(f"volume {volume_id} is on {volume.host} and group {group.id} on {group.host}")
    return volume


@LIFECYCLE.step("fill")
def _fill(world: World, group: models.Group, _arguments: Mapping[str, Any]) -> None:
    """The volumes fill themselves; the group is there when all of them are."""
    with world.db.read() as session:
        present = members(session, group.id)
    if any(volume.busy for volume in present):
        raise errors.MembersBusy(group.id)
    failed = [volume.id for volume in present if volume.status == "error"]
    if failed:
        raise errors.InvalidGroup(f"these of its volumes could not be made: {', '.join(failed)}")


# -- its end


def delete(ctx: Context, group: models.Group, *, delete_volumes: bool = False) -> None:
    """End a group, and if that is asked for all its volumes; it is gone when the last of them is.

    Raises InvalidGroup when its state, its snapshots or its volumes do not allow it, InvalidInput on a
    frozen back end.
    """
    ctx.world.cluster(group.host).check()
    taken = []
    with ctx.world.db.write() as session:
        services.refuse_frozen(session, group.host)
        owner = LIFECYCLE.begin(
            session,
            group.id,
            "delete",
            ctx.settings.lease,
            ctx.request_id,
            ~exists().where(models.GroupSnapshot.group_id == group.id),
            sources=ANY if delete_volumes else None,
        )
        if owner is None:
            find(ctx, session, group.id)  # Gone meanwhile is a 404, not a wrong state.
            raise errors.InvalidGroup(
                f"group {group.id} must be available or error, without group snapshots and in no operation"
            )
        _refuse_source(session, group)
        present = members(session, group.id, hold=True)
        if present and not delete_volumes:
            raise errors.InvalidGroup(f"group {group.id} has volumes, and delete-volumes was not given")
        taken = [(volume.id, _take(ctx, session, group, volume)) for volume in present]
    for volume_id, lease in taken:
        volumes.LIFECYCLE.run(ctx.world, volume_id, lease)
    LIFECYCLE.run(ctx.world, group.id, owner)


def _refuse_source(session: Session, group: models.Group) -> None:
    """Raise InvalidGroup while another group is being made from it."""
    table = models.Group
    made = select(table.id).where(table.source_group_id == group.id, table.busy == 1).limit(1)
    if session.scalar(made) is not None:
        raise errors.InvalidGroup(f"another group is being made from group {group.id}")


def _take(ctx: Context, session: Session, group: models.Group, volume: models.Volume) -> str:
    """Begin the end of a volume along with its group's; returns the lease. Raises InvalidGroup, InvalidVolume."""
    volumes.refuse_source(session, volume.id)
    snapshots = list(session.scalars(select(models.Snapshot).where(models.Snapshot.volume_id == volume.id)))
    if snapshots and not volumes.stay_behind(ctx, snapshots):
        raise errors.InvalidGroup(f"volume {volume.id} of group {group.id} still has snapshots")
    if (
        session.scalar(select(models.Attachment.id).where(models.Attachment.volume_id == volume.id).limit(1))
        is not None
    ):
        raise errors.InvalidGroup(f"volume {volume.id} of group {group.id} is attached; detach it first")
    owner = volumes.LIFECYCLE.begin(
        session,
        volume.id,
        "delete",
        ctx.settings.lease,
        ctx.request_id,
        volumes.AT_REST,
        **volumes.held(session, volume.id, [], stay=bool(snapshots)),
    )
    if owner is None:
        raise errors.InvalidGroup(f"volume {volume.id} of group {group.id} cannot be deleted in status {volume.status}")
    return owner


@LIFECYCLE.step("delete")
def _delete(world: World, group: models.Group, _arguments: Mapping[str, Any]) -> None:
    with world.db.read() as session:
        left = members(session, group.id)
    if any(volume.busy for volume in left):
        raise errors.MembersBusy(group.id)
    if left:
        raise errors.InvalidGroup(f"of its volumes these could not be deleted: {', '.join(one.id for one in left)}")


def reset_status(ctx: Context, group: models.Group, status: str) -> None:
    """Set the status by hand. Raises InvalidGroup while an operation is under way: its end would be lost."""
    with ctx.world.db.write() as session:
        current = hold(session, group.id)
        if current.busy:
            raise errors.InvalidGroup(f"an operation on it is under way ({current.status})")
        current.status, current.updated_at = status, models.utcnow()


# -- replication, which RBD has for images and not for groups


def refuse_replication(ctx: Context, group: models.Group, verb: str) -> None:
    """Raise what forbids a group's replication: its type, its volume types, or that no back end can do it."""
    check_replicated(ctx, group)
    raise errors.InvalidGroup(f"its replication is disabled, and no back end here can {verb} it")


def check_replicated(ctx: Context, group: models.Group) -> None:
    """Raise InvalidGroupType or InvalidVolumeType unless the types of group and volumes ask for replication."""
    if not group_types.is_replicated(group.group_type):
        raise errors.InvalidGroupType(f"groups of type {group.group_type_id} are not replicated")
    with ctx.world.db.read() as session:
        for row in group.volume_type_rows:
            kind = session.get_one(models.VolumeType, row.volume_type_id, options=types.SHOWN)
            if types.extra_specs(kind).get("replication_enabled") != group_types.YES:
                raise errors.InvalidVolumeType(f"volumes of type {kind.id} are not replicated")
