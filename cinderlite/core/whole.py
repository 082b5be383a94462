# SPDX-License-Identifier: Apache-2.0
"""A volume with all that is shown of it, for reading only: what nearly every request begins with.

What a newcomer gets wrong: what comes from here belongs to no transaction, and a change of it is a change of nothing.
Who changes a volume takes it from `volumes.find` in the transaction that does.
"""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import Select, bindparam, exists, select
from sqlalchemy.orm import joinedload
from sqlalchemy.orm.attributes import set_committed_value

from cinderlite import errors
from cinderlite.context import World
from cinderlite.db import models
from cinderlite.db.plain import Plain

_VOLUME, _TYPE = Plain(models.Volume), Plain(models.VolumeType)
#: What belongs to a volume, by attribute, and by which column it is in order.
_PARTS: dict[str, tuple[Plain[Any], str]] = {
    "metadata_rows": (Plain(models.VolumeMetadata), "key"),
    "image_metadata_rows": (Plain(models.ImageMetadata), "key"),
    "attachments": (Plain(models.Attachment), "created_at"),
}


def _of_part(part: Plain[Any], order: str) -> Select[Any]:
    return select(*part.columns).where(part.table.c.volume_id == bindparam("volume")).order_by(part.table.c[order])


#: Statements are made once: to make one costs more than to run it.
_STATEMENTS = {name: _of_part(*part) for name, part in _PARTS.items()}


@functools.cache
def _one(*, everybody: bool, shown: bool, gone: bool) -> Select[Any]:
    """A volume; if it is `shown`, with its type, and whether there is anything in each of _PARTS.

    Most have nothing there, and a statement less is time.
    """
    table, kinds = _VOLUME.table, _TYPE.table
    query: Select[Any] = select(*_VOLUME.columns).where(table.c.id == bindparam("volume"))
    if not everybody:
        query = query.where(table.c.project_id == bindparam("project"))
    if not gone:
        query = query.where(table.c.deleted.is_(False))
    if shown:
        has = (exists().where(part.table.c.volume_id == table.c.id) for part, _ in _PARTS.values())
        query = query.join(kinds, kinds.c.id == table.c.volume_type_id).add_columns(*_TYPE.columns, *has)
    return query


def read(
    world: World, volume_id: str, project_id: str | None, *, shown: bool = True, gone: bool = False
) -> models.Volume | None:
    """The volume of that id, of one project or of any; None if there is none.

    Without `shown` only its own columns, with `gone` also one that was deleted, of which snapshots may be left.
    """
    named = {"volume": volume_id, "project": project_id}
    query = _one(everybody=project_id is None, shown=shown, gone=gone)
    with world.db.look() as connection:
        row = connection.execute(query, named).one_or_none()
        if row is None:
            return None
        if not shown:
            return _VOLUME.make(row)
        split = len(_VOLUME.columns)
        parts = {
            name: [part.make(one) for one in connection.execute(_STATEMENTS[name], named)] if has else []
            for (name, (part, _)), has in zip(_PARTS.items(), row[-len(_PARTS) :], strict=True)
        }
    kind = _TYPE.make(row[split : -len(_PARTS)])
    found = _VOLUME.make(row[:split], volume_type=kind, group=None, **parts)
    if found.group_id is not None:
        set_committed_value(found, "group", _group(world, found.group_id))
    return found


def named(world: World, volume_id: str) -> models.Volume:
    """The volume that a row or an operator names, whosever and maybe deleted, with its own columns only.

    Raises VolumeNotFound.
    """
    found = read(world, volume_id, None, shown=False, gone=True)
    if found is None:
        raise errors.VolumeNotFound(volume_id)
    return found


def _group(world: World, group_id: str) -> models.Group | None:
    with world.db.read() as session:
        return session.get(models.Group, group_id, options=[joinedload(models.Group.group_type)])
