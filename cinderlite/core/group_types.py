# SPDX-License-Identifier: Apache-2.0
"""Group types and their specs.

One of them is reserved: consistency groups, the API's older word for groups, are groups of that type, and it always
exists. A spec is a word for the back end; the one that this service knows is `CONSISTENT`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from sqlalchemy import Select, exc, or_, select
from sqlalchemy.orm import Session, selectinload

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.db import models
from cinderlite.db.session import refusing

#: The type of consistency groups.
RESERVED = "default_cgsnapshot_type"
#: The spec of types whose group snapshots hold one moment of all volumes.
CONSISTENT = "consistent_group_snapshot_enabled"
YES = "<is> True"


def ensure_reserved(world: World) -> None:
    """Make the type of consistency groups if the database has none yet."""
    # Another process that starts now may be quicker.
    with contextlib.suppress(exc.IntegrityError), world.db.write() as session:
        if session.scalar(select(models.GroupType.id).where(models.GroupType.name == RESERVED)) is None:
            specs = [models.GroupTypeSpec(key=CONSISTENT, value=YES)]
            session.add(models.GroupType(name=RESERVED, description="Consistency groups", spec_rows=specs))


def visible(ctx: Context) -> Select[models.GroupType]:
    """The group types that the caller may use: public ones, and all for an administrator."""
    query = select(models.GroupType)
    return query if ctx.is_admin else query.where(models.GroupType.is_public)


def get(ctx: Context, type_id: str) -> models.GroupType:
    """The group type of that id, with its specs. Raises GroupTypeNotFound."""
    with ctx.world.db.read() as session:
        return find(ctx, session, type_id)


def find(ctx: Context, session: Session, type_id: str) -> models.GroupType:
    """The same in a transaction."""
    query = visible(ctx).where(models.GroupType.id == type_id).options(selectinload(models.GroupType.spec_rows))
    found = session.scalars(query).one_or_none()
    if found is None:
        raise errors.GroupTypeNotFound(type_id)
    return found


def resolve(ctx: Context, session: Session, name_or_id: str) -> models.GroupType:
    """The group type of that id or name, with its specs. Raises GroupTypeNotFound."""
    table = models.GroupType
    query = visible(ctx).where(or_(table.id == name_or_id, table.name == name_or_id))
    found = session.scalars(query.options(selectinload(table.spec_rows))).all()
    if not found:
        raise errors.GroupTypeNotFound(name_or_id)
    # A type may be named like another's id.
    return next((kind for kind in found if kind.id == name_or_id), found[0])


def default(ctx: Context) -> models.GroupType:
    """The type that is configured as the default one. Raises NotFound."""
    name = ctx.settings.default_group_type
    query = select(models.GroupType).where(models.GroupType.name == name)
    with ctx.world.db.read() as session:
        found = session.scalars(query.options(selectinload(models.GroupType.spec_rows))).one_or_none()
    if found is None:
        raise errors.NotFound("Default group type can not be found.")
    return found


def specs(kind: models.GroupType) -> dict[str, str | None]:
    """The specs of a type that was loaded with them."""
    return {row.key: row.value for row in kind.spec_rows}


def is_consistent(kind: models.GroupType) -> bool:
    """Whether snapshots of a type's groups hold one moment of all volumes."""
    return (specs(kind).get(CONSISTENT) or "").strip().lower() == YES.lower()


def is_replicated(kind: models.GroupType) -> bool:
    """Whether a type's groups are meant to be replicated."""
    found = specs(kind)
    return YES in (found.get("group_replication_enabled"), found.get("consistent_group_replication_enabled"))


def create(
    ctx: Context,
    *,
    name: str,
    description: str | None = None,
    is_public: bool = True,
    group_specs: Mapping[str, str | None] | None = None,
) -> models.GroupType:
    """Make a group type. Raises GroupTypeExists."""
    kind = models.GroupType(
        name=name,
        description=description,
        is_public=is_public,
        spec_rows=[models.GroupTypeSpec(key=key, value=value) for key, value in (group_specs or {}).items()],
    )
    with refusing(errors.GroupTypeExists(name)), ctx.world.db.write() as session:
        session.add(kind)
    return kind


def update(
    ctx: Context,
    kind: models.GroupType,
    *,
    name: str | None = None,
    description: str | None = None,
    is_public: bool | None = None,
) -> models.GroupType:
    """Change what is given and return the new row. Raises GroupTypeExists, InvalidGroupType for the reserved one."""
    wanted = {"name": name, "description": description, "is_public": is_public}
    changes = {key: value for key, value in wanted.items() if value is not None}
    if kind.name == RESERVED and name not in (None, RESERVED):
        raise errors.InvalidGroupType(f"{RESERVED} is the type of consistency groups and keeps its name.")
    with refusing(errors.GroupTypeExists(name)), ctx.world.db.write() as session:
        current = find(ctx, session, kind.id)
        for key, value in changes.items():
            setattr(current, key, value)
        current.updated_at = models.utcnow()
    return current


def delete(ctx: Context, kind: models.GroupType) -> None:
    """Remove a group type. Raises GroupTypeInUse while there are groups of it, and for the reserved one."""
    if kind.name == RESERVED:
        raise errors.GroupTypeInUse
    # Groups and group snapshots name their type.
    with refusing(errors.GroupTypeInUse()), ctx.world.db.write() as session:
        session.delete(find(ctx, session, kind.id))


def set_specs(ctx: Context, kind: models.GroupType, values: Mapping[str, str | None]) -> None:
    """Add specs to a group type, or put them in the place of those of the same keys."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, kind.id)
        present = {row.key: row for row in current.spec_rows}
        for key, value in values.items():
            if key in present:
                present[key].value = value
            else:
                current.spec_rows.append(models.GroupTypeSpec(key=key, value=value))


def delete_spec(ctx: Context, kind: models.GroupType, key: str) -> None:
    """Remove a spec. Raises GroupTypeSpecNotFound."""
    with ctx.world.db.write() as session:
        current = find(ctx, session, kind.id)
        row = next((row for row in current.spec_rows if row.key == key), None)
        if row is None:
            raise errors.GroupTypeSpecNotFound(kind.id, key)
        current.spec_rows.remove(row)
