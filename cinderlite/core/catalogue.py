# SPDX-License-Identifier: Apache-2.0
"""What administrators made, as one text: types and all that hangs on them, quotas, what is disabled.

It lies in each pool with the records, so that a rebuilt database has the types of its volumes under their own ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from cinderlite.core import records
from cinderlite.db import models

#: In the order in which rows can be made.
_TABLES: tuple[type[Any], ...] = (
    models.QosSpecs, models.QosKey, models.VolumeType, models.ExtraSpec, models.TypeAccess, models.TypeEncryption,
    models.DefaultType, models.GroupType, models.GroupTypeSpec, models.Quota, models.QuotaClass, models.Service,
)  # fmt: skip
#: Of these somebody else may have made one of the same name meanwhile, such as the service the default type.
_NAMED: tuple[type[Any], ...] = (models.QosSpecs, models.VolumeType, models.GroupType)
#: A sign of life is nothing to be kept.
_OMITTED = frozenset({"updated_at"})


def told(session: Session) -> dict[str, list[dict[str, Any]]]:
    """All rows by table."""
    return {table.__tablename__: _rows(session, table) for table in _TABLES}


def _rows(session: Session, table: type[Any]) -> list[dict[str, Any]]:
    query = select(table).order_by(*sqlalchemy.inspect(table).primary_key)
    if table is models.Service:
        query = query.where(or_(table.disabled, table.frozen))
        return [records.plain(row, _OMITTED) for row in session.scalars(query)]
    return [records.plain(row) for row in session.scalars(query)]


@dataclasses.dataclass(slots=True)
class Restored:
    """What was made anew. `instead` has the ids of what is there under the same name and another id."""

    count: int = 0
    instead: dict[str, str] = dataclasses.field(default_factory=dict)

    def id(self, known: str | None) -> str | None:
        """What a row that names that id is to name now."""
        return self.instead.get(known, known) if known is not None else None


def restore(session: Session, content: Mapping[str, Any]) -> Restored:
    """Make what is not there yet; what is there stays as it is, unless nothing needs it."""
    done = Restored()
    for table in _TABLES:
        for written in content.get(table.__tablename__, ()):
            _restore(session, table, written, done)
        session.flush()
    return done


def _restore(session: Session, table: type[Any], written: Mapping[str, Any], done: Restored) -> None:
    values = {name: done.id(value) if name.endswith("_id") else value for name, value in written.items()}
    row = table(**records.values(table, values))
    key = sqlalchemy.inspect(table).primary_key_from_instance(row)
    if session.get(table, tuple(key)) is not None:
        return
    if table in _NAMED and (other := _namesake(session, table, row.name)) is not None:
        if _is_needed(session, table, other.id):
            done.instead[row.id] = other.id
            return
        session.delete(other)
        session.flush()
    elif _is_taken(session, table, row):
        return
    session.add(row)
    done.count += 1


def _namesake(session: Session, table: type[Any], name: str) -> Any:
    return session.scalars(select(table).where(table.name == name)).one_or_none()


def _is_taken(session: Session, table: type[Any], row: Any) -> bool:
    """Whether there is one already for what there can be only one of."""
    same: list[ColumnElement[bool]]
    if table is models.Service:
        same = [models.Service.host == row.host, models.Service.binary == row.binary]
    elif table is models.TypeEncryption:
        same = [models.TypeEncryption.volume_type_id == row.volume_type_id]
    else:
        return False
    return session.scalars(select(table.id).where(*same)).first() is not None


def _is_needed(session: Session, table: type[Any], row_id: str) -> bool:
    """Whether a row is named by another one that does not go with it."""
    return any(
        session.execute(select(column).where(column == row_id).limit(1)).first() is not None
        for other in models.Base.metadata.sorted_tables
        for column in other.columns
        for key in column.foreign_keys
        if key.column.table is table.__table__ and key.ondelete != "CASCADE"
    )
