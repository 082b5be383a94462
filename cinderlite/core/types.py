# SPDX-License-Identifier: Apache-2.0
"""Volume types: for now the default one, which always exists."""

from __future__ import annotations

import contextlib

from sqlalchemy import exc, or_, select
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql.base import ExecutableOption

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.db import models


def ensure_default(world: World) -> None:
    """Make the default type if the database has none yet (a fresh one)."""
    name = world.settings.default_volume_type
    # Another process that starts now may be quicker.
    with contextlib.suppress(exc.IntegrityError), world.db.write() as session:
        if session.scalar(select(models.VolumeType.id).where(models.VolumeType.name == name)) is None:
            session.add(models.VolumeType(name=name, description="Default Volume Type"))


def default(ctx: Context) -> models.VolumeType:
    """The type of a volume that is created without one."""
    with ctx.world.db.read() as session:
        return resolve(session, ctx.settings.default_volume_type)


def get(ctx: Context, type_id: str) -> models.VolumeType:
    """The type of that id. Raises VolumeTypeNotFound."""
    with ctx.world.db.read() as session:
        found = session.get(models.VolumeType, type_id)
    if found is None:
        raise errors.VolumeTypeNotFound(type_id)
    return found


def resolve(session: Session, name_or_id: str, *options: ExecutableOption) -> models.VolumeType:
    """The type of that id or name, loaded with `options`. Raises VolumeTypeNotFound."""
    table = models.VolumeType
    query = select(table).where(or_(table.id == name_or_id, table.name == name_or_id)).options(*options)
    found = session.scalars(query.execution_options(populate_existing=bool(options))).unique().first()
    if found is None:
        raise errors.VolumeTypeNotFound(name_or_id)
    return found


def for_new_volume(ctx: Context, session: Session, name_or_id: str | None) -> models.VolumeType:
    """The type of a volume about to be made, with its extra specs; the default one if none is named."""
    table = models.VolumeType
    return resolve(session, name_or_id or ctx.settings.default_volume_type, joinedload(table.extra_spec_rows))


def extra_specs(kind: models.VolumeType) -> dict[str, str]:
    """The extra specs of a type that was loaded with them."""
    return {row.key: row.value for row in kind.extra_spec_rows}


def is_multiattach(kind: models.VolumeType) -> bool:
    """Whether several servers may hold a volume of a type that was loaded with its extra specs."""
    return extra_specs(kind).get("multiattach", "").strip().lower() == "<is> true"


def is_encrypted(session: Session, kind: models.VolumeType) -> bool:
    """Whether volumes of a type are encrypted."""
    table = models.TypeEncryption
    return session.scalar(select(table.id).where(table.volume_type_id == kind.id)) is not None


def visible(ctx: Context) -> list[models.VolumeType]:
    """The public types, newest first."""
    table = models.VolumeType
    with ctx.world.db.read() as session:
        return list(session.scalars(select(table).where(table.is_public).order_by(table.created_at.desc(), table.id)))
