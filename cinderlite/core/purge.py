# SPDX-License-Identifier: Apache-2.0
"""Remove for good the rows that stay behind a deletion, once they are old.

Such a row goes only when nothing is left to be done for it and no other row names it, whether by a foreign key, by an
id that has none (a clone's source, a backup's volume) or in an intent. What one pass removes may free what it named,
so passes go on until one finds nothing.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from sqlalchemy import Column, Select, delete, exists, select
from sqlalchemy.orm import Session

from cinderlite.db import models
from cinderlite.db.session import Database

#: Rows removed in one transaction.
BATCH = 500

#: What keeps deleted rows, those first that name others.
KEPT: tuple[type[Any], ...] = (models.Transfer, models.Volume)

#: Ids of volumes in columns that are no foreign keys, since the volume may go first.
LOOSE: tuple[Column[Any], ...] = (
    models.Base.metadata.tables["volumes"].c.source_volid,
    models.Base.metadata.tables["backups"].c.volume_id,
    models.Base.metadata.tables["leftovers"].c.volume_id,
)


def purge(db: Database, age: datetime.timedelta) -> dict[str, int]:
    """Remove what was deleted longer ago than `age`; how many rows of each table that were."""
    removed = {model.__tablename__: 0 for model in KEPT}
    before = models.utcnow() - age
    for model in KEPT:
        while count := _some(db, model, before):
            removed[model.__tablename__] += count
    return removed


def _some(db: Database, model: type[Any], before: datetime.datetime) -> int:
    with db.write() as session:
        worked_on = _worked_on(session)
        found = [row_id for row_id in session.scalars(_removable(model, before)) if row_id not in worked_on][:BATCH]
        if found:
            session.execute(delete(model).where(model.id.in_(found)).execution_options(synchronize_session=False))
    return len(found)


def _removable(model: type[Any], before: datetime.datetime) -> Select[str]:
    table = model.__table__
    chosen = select(table.c.id).where(table.c.deleted, table.c.deleted_at < before)
    if issubclass(model, models.Working):
        chosen = chosen.where(table.c.busy == 0)
    if model is models.Volume:
        chosen = chosen.where(table.c.purge_at.is_(None), table.c.status != "outlived")
    for column in _naming(model):
        other = column.table.alias()
        chosen = chosen.where(~exists().where(other.c[column.name] == table.c.id))
    return chosen.order_by(table.c.deleted_at).limit(BATCH * 4)


def _naming(model: type[Any]) -> list[Column[Any]]:
    """The columns that hold ids of the model's rows, but for rows that go with them."""
    keys = [
        column
        for table in models.Base.metadata.sorted_tables
        for column in table.columns
        for key in column.foreign_keys
        if key.column.table is model.__table__ and key.ondelete != "CASCADE"
    ]
    return keys + (list(LOOSE) if model is models.Volume else [])


def _worked_on(session: Session) -> set[str]:
    """Every text in an intent, among them the ids of what is worked with."""
    found: set[str] = set()
    for mapper in models.Base.registry.mappers:
        if issubclass(mapper.class_, models.Working):
            for intent in session.scalars(select(mapper.class_.intent).where(mapper.class_.busy == 1)):
                found.update(json.dumps(intent).split('"'))
    return found
