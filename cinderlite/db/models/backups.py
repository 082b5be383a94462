# SPDX-License-Identifier: Apache-2.0
"""Backups."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, query_expression, relationship

from cinderlite.db.models.base import Base, Dated, Named, Recorded, Time, Working, new_id


class Backup(Dated, Named, Working, Recorded, Base):
    """A backup of a volume; `size` in GiB. With it goes its row, which may be `deleted` until its chain has gone."""

    __tablename__ = "backups"
    __table_args__ = (
        Index("backups_by_project", "project_id", "created_at", "id"),
        Index("backups_by_age", "created_at", "id"),
        Index("backups_by_volume", "volume_id", "created_at"),
        Index("backups_by_parent", "parent_id"),
        Index("backups_busy", "busy", "lease_until"),
        Index("backups_unwritten", "unwritten"),
        Index("backups_by_status", "status", "created_at", "id"),
        Index("backups_of_project_by_status", "project_id", "status", "created_at", "id"),
        Index("backups_by_name", "project_id", "name"),
        Index("backups_named", "name"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    volume_id: Mapped[str] = mapped_column(String(36))
    snapshot_id: Mapped[str | None] = mapped_column(String(36))
    #: The backup that this one holds the difference to; NULL for a full one.
    parent_id: Mapped[str | None] = mapped_column(String(36))
    size: Mapped[int] = mapped_column(Integer)
    object_count: Mapped[int] = mapped_column(Integer, default=0)
    container: Mapped[str | None] = mapped_column(String(255))
    availability_zone: Mapped[str | None] = mapped_column(String(255))
    host: Mapped[str | None] = mapped_column(String(255))
    fail_reason: Mapped[str | None] = mapped_column(Text)
    #: The moment whose data it holds.
    data_timestamp: Mapped[datetime.datetime | None] = mapped_column(Time)
    encryption_key_id: Mapped[str | None] = mapped_column(String(36))
    #: What the storage must know to find and check it (digest, names), and what of the volume a restore needs.
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

    #: Whether another one is incremental to it; known where a query asks for it.
    has_increments: Mapped[bool] = query_expression()

    @property
    def stored_as(self) -> str:
        """The id under which the backup pool has its data; its record may have been taken in under another one."""
        return str(self.details["stored_as"])

    metadata_rows: Mapped[list[BackupMetadata]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )


class BackupMetadata(Base):
    """One key of a backup's metadata."""

    __tablename__ = "backup_metadata"

    backup_id: Mapped[str] = mapped_column(String(36), ForeignKey("backups.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))
