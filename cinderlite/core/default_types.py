# SPDX-License-Identifier: Apache-2.0
"""The type of volumes that a project creates without naming one, where that is not the configured default."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy
from sqlalchemy import select

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import types
from cinderlite.db import models
from cinderlite.db.session import refusing


def every(ctx: Context) -> Sequence[models.DefaultType]:
    """What all projects that have one have, by project."""
    table = models.DefaultType
    with ctx.world.db.read() as session:
        return session.scalars(select(table).order_by(table.project_id)).all()


def get(ctx: Context, project_id: str) -> models.DefaultType:
    """A project's own default. Raises DefaultTypeNotFound."""
    with ctx.world.db.read() as session:
        found = session.get(models.DefaultType, project_id)
    if found is None:
        raise errors.DefaultTypeNotFound(project_id)
    return found


def put(ctx: Context, project_id: str, name_or_id: str) -> models.DefaultType:
    """Give a project a default of its own. Raises BadRequest if there is no such type, Conflict."""
    busy = errors.Conflict(f"The default type of project {project_id} is being set by somebody else.")
    with refusing(busy), ctx.world.db.write() as session:
        try:
            kind = types.resolve(ctx, session, name_or_id)
        except errors.VolumeTypeNotFound as error:
            raise errors.BadRequest(error.message) from error
        return session.merge(models.DefaultType(project_id=project_id, volume_type_id=kind.id))


def remove(ctx: Context, project_id: str) -> None:
    """Have the configured default count for a project again; nothing if it does already."""
    table = models.DefaultType
    with ctx.world.db.write() as session:
        session.execute(sqlalchemy.delete(table).where(table.project_id == project_id))
