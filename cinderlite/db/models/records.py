# SPDX-License-Identifier: Apache-2.0
"""What writing records into Ceph needs: what is to be removed there, and who is at it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Double, Index, Integer, String, event, insert, literal, select
from sqlalchemy.orm import Mapped, Mapper, mapped_column

from cinderlite.db.indexes import unindexed
from cinderlite.db.models.attachments import Attachment
from cinderlite.db.models.backups import Backup
from cinderlite.db.models.base import Base, new_id
from cinderlite.db.models.groups import Group, GroupSnapshot
from cinderlite.db.models.volumes import Snapshot, Volume

#: As `host` of a backup's record: the backup pool, of which there is one.
VAULT = "backups"


class GoneRecord(Base):
    """A record whose row is gone, or is somewhere else now; the row goes when the record has gone."""

    __tablename__ = "gone_records"
    __table_args__ = (Index("gone_records_by_host", "host"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    #: The pool, as in Volume.host, or VAULT.
    host: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(32))
    row_id: Mapped[str] = mapped_column(String(36))


class Recorder(Base):
    """The one row: which database this is, and which process writes its records now."""

    __tablename__ = "recorder"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, default=1, autoincrement=False)
    #: Tells the catalogues of several databases apart, as they may share a pool; a rebuilt one has the lost one's.
    database_id: Mapped[str] = mapped_column(String(36), default=new_id)
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[float] = mapped_column(Double, default=0.0)


#: Where the record of a row is that has no `host` of its own: the column that names a row that has.
_HOSTED_BY: dict[type[Any], tuple[str, type[Any]]] = {
    Attachment: ("volume_id", Volume), Snapshot: ("volume_id", Volume), GroupSnapshot: ("group_id", Group),
}  # fmt: skip


def host_of(model: type[Any]) -> Any:
    """The pool that the record of a row belongs into, for a query of that table."""
    if model is Backup:
        return literal(VAULT)
    if model not in _HOSTED_BY:
        return unindexed(model.host)  # Most rows are there.
    column, parent = _HOSTED_BY[model]
    return select(parent.host).where(parent.id == getattr(model, column)).scalar_subquery()


def _gone(_mapper: Mapper[Any], connection: Connection, row: Any) -> None:
    """Note in the very transaction that deletes a row that its record is to be removed."""
    model = type(row)
    where: Any = VAULT if model is Backup else getattr(row, "host", None)
    if model in _HOSTED_BY:
        column, parent = _HOSTED_BY[model]
        where = select(parent.host).where(parent.id == getattr(row, column)).scalar_subquery()
    connection.execute(insert(GoneRecord).values(host=where, kind=model.__tablename__, row_id=row.id))


for _model in (Attachment, Backup, Group, GroupSnapshot, Snapshot):
    event.listen(_model, "after_delete", _gone)
