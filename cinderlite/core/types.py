# SPDX-License-Identifier: Apache-2.0
"""Volume types: who may use them, what their volumes are to be like (extra specs), which one is the default.

What a newcomer gets wrong: a type decides about volumes that are just being made. Whoever makes one holds the type's
row shared until that volume is in the database (`for_new_volume`), and who changes what a type means or deletes it
locks the row first (`lock`) and looks for volumes after that.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import BindParameter, ColumnElement, Select, and_, bindparam, exc, exists, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import tuning
from cinderlite.db import models
from cinderlite.db.session import refusing

#: What the API shows of a type is loaded with its row.
SHOWN = (selectinload(models.VolumeType.extra_spec_rows),)
#: What has a quota of its own for each type, under "<this>_<name of the type>".
BY_TYPE = ("volumes", "gigabytes", "snapshots")
#: The policy rule about volumes that several servers may hold; which these are is known only when their type is.
SHARING = "volume:multiattach"
#: How extra specs say yes.
YES = "<is> True"


def ensure_default(world: World) -> None:
    """Make the default type if the database has none yet (a fresh one)."""
    name = world.settings.default_volume_type
    # Another process that starts now may be quicker.
    with contextlib.suppress(exc.IntegrityError), world.db.write() as session:
        if session.scalar(select(models.VolumeType.id).where(models.VolumeType.name == name)) is None:
            session.add(models.VolumeType(name=name, description="Default Volume Type"))


# -- which there are


def visible(ctx: Context, *, public: bool | None = None) -> Select[models.VolumeType]:
    """The types that the caller may use; an administrator may ask for the public ones only, or for the others."""
    query = select(models.VolumeType)
    if not ctx.is_admin:
        return query.where(_usable(ctx.project_id))
    if public is None:
        return query
    return query.where(_usable(ctx.project_id) if public else models.VolumeType.is_public.is_(False))


def _usable(project_id: str | BindParameter[str]) -> ColumnElement[bool]:
    """Types that are public, or that the project was given."""
    access = models.TypeAccess
    given = select(access.volume_type_id).where(access.project_id == project_id)
    return or_(models.VolumeType.is_public, models.VolumeType.id.in_(given))


def usable(ctx: Context) -> list[models.VolumeType]:
    """The types that the caller may use, newest first."""
    with ctx.world.db.read() as session:
        return list(session.scalars(visible(ctx).order_by(models.VolumeType.created_at.desc(), models.VolumeType.id)))


def get(ctx: Context, type_id: str) -> models.VolumeType:
    """The type of that id. Raises VolumeTypeNotFound, also for one that the caller's project may not use."""
    with ctx.world.db.read() as session:
        found = session.scalars(visible(ctx).where(models.VolumeType.id == type_id).options(*SHOWN)).one_or_none()
    if found is None:
        raise errors.VolumeTypeNotFound(type_id)
    return found


def default(ctx: Context) -> models.VolumeType:
    """The type of a volume that the project creates without one. Raises VolumeTypeNotFound."""
    with ctx.world.db.read() as session:
        chosen = _default(ctx.project_id, ctx.settings.default_volume_type)
        found = session.scalars(visible(ctx).where(chosen).options(*SHOWN)).one_or_none()
    if found is None:
        raise errors.VolumeTypeNotFound(ctx.settings.default_volume_type)
    return found


def _default(project_id: str | BindParameter[str], configured: str | BindParameter[str]) -> ColumnElement[bool]:
    """The project's own default, else the configured one."""
    table, own = models.VolumeType, _own_default(project_id)
    return or_(table.id.in_(own), and_(~own.exists(), table.name == configured))


def _own_default(project_id: str | BindParameter[str]) -> Select[str]:
    """The id of the project's own default."""
    table = models.DefaultType
    return select(table.volume_type_id).where(table.project_id == project_id)


def for_new_volume(
    ctx: Context, session: Session, name_or_id: str | None, *, may_encrypt: bool = True
) -> models.VolumeType:
    """The type of a volume about to be made, with its extra specs and its encryption; the default one if none is named.

    It cannot be deleted or mean something else before the transaction ends. Raises VolumeTypeNotFound,
    DefaultTypeMissing, InvalidInput for one whose volumes are encrypted unless `may_encrypt`.
    """
    found = _hold(ctx, session, name_or_id)
    if found is None:
        wanted = name_or_id or session.scalar(_own_default(ctx.project_id))
        if wanted is None:
            raise errors.DefaultTypeMissing(ctx.settings.default_volume_type)
        raise errors.VolumeTypeNotFound(wanted)
    if found.encryption is not None and not may_encrypt:
        raise errors.InvalidInput(f"Volumes of type {found.name} are encrypted, and this one is not.")
    return found


def resolve(ctx: Context, session: Session, name_or_id: str) -> models.VolumeType:
    """The type of that id or name, which cannot be deleted before the transaction ends. Raises VolumeTypeNotFound."""
    found = _hold(ctx, session, name_or_id)
    if found is None:
        raise errors.VolumeTypeNotFound(name_or_id)
    return found


def _called(name_or_id: BindParameter[str]) -> ColumnElement[bool]:
    return or_(models.VolumeType.id == name_or_id, models.VolumeType.name == name_or_id)


@functools.cache
def _held(*, everybody: bool, named: bool) -> Select[str]:
    """The id of a type, by its name or id or the default one, held as it is. Made once: every new volume needs it."""
    table = models.VolumeType
    project: BindParameter[str] = bindparam("project")
    wanted: BindParameter[str] = bindparam("wanted")
    query = select(table.id) if everybody else select(table.id).where(_usable(project))
    # A type may be called by what is another one's id: the id counts.
    query = (
        query.where(_called(wanted)).order_by(table.id != wanted) if named else query.where(_default(project, wanted))
    )
    return query.limit(1).with_for_update(read=True, key_share=True)


#: A type with what decides about a new volume. A statement of its own: one that waited for the row sees of all others
#: what there was before the wait.
_WHOLE = (
    select(models.VolumeType)
    .where(models.VolumeType.id == bindparam("held"))
    .options(joinedload(models.VolumeType.extra_spec_rows), joinedload(models.VolumeType.encryption))
    .execution_options(populate_existing=True)
)


def _hold(ctx: Context, session: Session, name_or_id: str | None) -> models.VolumeType | None:
    """The type with its extra specs and its encryption, held as it is; the default one if none is named."""
    wanted = name_or_id or ctx.settings.default_volume_type
    query = _held(everybody=ctx.is_admin, named=bool(name_or_id))
    held = session.scalar(query, {"project": ctx.project_id, "wanted": wanted})
    return session.scalars(_WHOLE, {"held": held}).unique().first()


# -- what a type means


def extra_specs(kind: models.VolumeType) -> dict[str, str]:
    """The extra specs of a type that was loaded with them."""
    return {row.key: row.value for row in kind.extra_spec_rows}


def is_multiattach(kind: models.VolumeType) -> bool:
    """Whether several servers may hold a volume of a type that was loaded with its extra specs."""
    return extra_specs(kind).get("multiattach", "").strip().lower() == "<is> true"


# -- by administrators


def lock(session: Session, type_id: str) -> models.VolumeType:
    """The type's row, with which no volume is made before this transaction ends. Raises VolumeTypeNotFound."""
    query = select(models.VolumeType).where(models.VolumeType.id == type_id).options(*SHOWN)
    found = session.scalars(query.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise errors.VolumeTypeNotFound(type_id)
    return found


def is_in_use(session: Session, type_id: str) -> bool:
    """Whether a volume has the type or is being given it. Under `lock`.

    So may a deleted one that can be brought back, or of which snapshots are left.
    """
    table = models.Volume
    outlived = exists().where(models.Snapshot.volume_id == table.id)
    there = or_(table.deleted.is_(False), table.purge_at.is_not(None), outlived)
    holding = select(table.id).where(table.volume_type_id == type_id, there).limit(1)
    if session.scalar(holding) is not None:
        return True
    retyping = session.scalars(select(table.intent).where(table.busy == 1, table.status == "retyping"))
    return any(intent is not None and intent.get("volume_type_id") == type_id for intent in retyping)


def create(
    ctx: Context, *, name: str, description: str | None = None, is_public: bool = True, extra_specs: Mapping[str, str]
) -> models.VolumeType:
    """Create a type. Raises VolumeTypeExists, InvalidInput for an extra spec of ours that means nothing."""
    tuning.refuse_flawed(extra_specs)
    kind = models.VolumeType(
        id=models.new_id(),
        name=name,
        description=description,
        is_public=is_public,
        extra_spec_rows=[models.ExtraSpec(key=key, value=value) for key, value in extra_specs.items()],
    )
    with refusing(errors.VolumeTypeExists(name)), ctx.world.db.write() as session:
        session.add(kind)
    return kind


def update(ctx: Context, kind: models.VolumeType, **changes: Any) -> models.VolumeType:
    """Change name, description or is_public and return the new row. Raises VolumeTypeExists."""
    with refusing(errors.VolumeTypeExists(changes.get("name"))), ctx.world.db.write() as session:
        current = lock(session, kind.id)
        if changes.get("name", current.name) != current.name:
            _move_quotas(session, current.name, changes["name"])
        for key, value in changes.items():
            setattr(current, key, value)
        current.updated_at = models.utcnow()
    return current


def _move_quotas(session: Session, name: str, new_name: str | None) -> None:
    """Give the quotas of a type its new name; without one they go."""
    for table in (models.Quota, models.QuotaClass):
        for what in BY_TYPE:
            own = table.resource == f"{what}_{name}"
            if new_name is None:
                session.execute(sqlalchemy.delete(table).where(own))
            else:
                session.execute(sqlalchemy.update(table).where(own).values(resource=f"{what}_{new_name}"))


def delete(ctx: Context, kind: models.VolumeType) -> None:
    """Delete a type. Raises VolumeTypeIsDefault, VolumeTypeInUse."""
    with refusing(errors.VolumeTypeInUse()), ctx.world.db.write() as session:
        current = lock(session, kind.id)
        fallback = _refuse_default(ctx, session, current)
        if is_in_use(session, current.id):
            raise errors.VolumeTypeInUse
        # The rows of deleted volumes stay for the record, which does not show their type any more.
        table = models.Volume
        gone = sqlalchemy.update(table).where(table.volume_type_id == current.id, table.deleted)
        session.execute(gone.values(volume_type_id=fallback).execution_options(synchronize_session=False))
        _move_quotas(session, current.name, None)
        session.delete(current)


def _refuse_default(ctx: Context, session: Session, kind: models.VolumeType) -> str:
    """The id of the configured default type, if the type is neither that nor a project's."""
    name, defaults = ctx.settings.default_volume_type, models.DefaultType
    configured = session.scalar(select(models.VolumeType.id).where(models.VolumeType.name == name))
    if configured is None:
        raise errors.DefaultTypeMissing(name)
    of_project = select(defaults.project_id).where(defaults.volume_type_id == kind.id).limit(1)
    if configured == kind.id or session.scalar(of_project) is not None:
        raise errors.VolumeTypeIsDefault(kind.id)
    return configured


# -- extra specs


def set_extra_specs(ctx: Context, kind: models.VolumeType, specs: Mapping[str, str]) -> dict[str, str]:
    """Add extra specs, or replace the values of those there are; answers what was given.

    Raises BadRequest if a volume has the type, or if it would be both cacheable and for several servers, InvalidInput
    for one of ours that means nothing.
    """
    tuning.refuse_flawed(specs)
    with ctx.world.db.write() as session:
        merged = {**extra_specs(lock_unused(session, kind.id)), **specs}
        if specs.keys() & {"cacheable", "multiattach"} and merged.get("cacheable") == merged.get("multiattach") == YES:
            raise errors.BadRequest("cacheable cannot be set with multiattach.")
        for key, value in specs.items():
            session.merge(models.ExtraSpec(volume_type_id=kind.id, key=key, value=value))
    return dict(specs)


def delete_extra_spec(ctx: Context, kind: models.VolumeType, key: str) -> None:
    """Remove an extra spec. Raises ExtraSpecNotFound, BadRequest if a volume has the type."""
    with ctx.world.db.write() as session:
        lock_unused(session, kind.id)
        row = session.get(models.ExtraSpec, (kind.id, key))
        if row is None:
            raise errors.ExtraSpecNotFound(kind.id, key)
        session.delete(row)


def lock_unused(session: Session, type_id: str) -> models.VolumeType:
    """Lock a type whose meaning is about to change. Raises BadRequest if a volume has it."""
    current = lock(session, type_id)
    if is_in_use(session, type_id):
        raise errors.BadRequest("Volume Type is currently in use.")
    current.updated_at = models.utcnow()
    return current


# -- access


def projects(ctx: Context, kind: models.VolumeType) -> list[models.TypeAccess]:
    """Which projects may use a type that is not public. Raises NotFound for one that is."""
    if kind.is_public:
        raise errors.NotFound("Access list not available for public volume types.")
    table = models.TypeAccess
    with ctx.world.db.read() as session:
        given = select(table).where(table.volume_type_id == kind.id).order_by(table.project_id)
        return list(session.scalars(given))


def give(ctx: Context, kind: models.VolumeType, project_id: str) -> None:
    """Let a project use a type. Raises InvalidVolumeType for a public one, VolumeTypeAccessExists."""
    with refusing(errors.VolumeTypeAccessExists(kind.id, project_id)), ctx.world.db.write() as session:
        _lock_private(session, kind.id)
        session.add(models.TypeAccess(volume_type_id=kind.id, project_id=project_id))


def take(ctx: Context, kind: models.VolumeType, project_id: str) -> None:
    """Let a project use a type no more. Raises InvalidVolumeType for a public one, VolumeTypeAccessNotFound."""
    with ctx.world.db.write() as session:
        _lock_private(session, kind.id)
        row = session.get(models.TypeAccess, (kind.id, project_id))
        if row is None:
            raise errors.VolumeTypeAccessNotFound(kind.id, project_id)
        session.delete(row)


def _lock_private(session: Session, type_id: str) -> None:
    if lock(session, type_id).is_public:
        raise errors.InvalidVolumeType("Type access modification is not applicable to public volume type.")
