# SPDX-License-Identifier: Apache-2.0
"""Groups of volumes, their types and their snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Boolean, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from cinderlite.db.models.base import Base, Dated, Named, Recorded, Working, new_id

if TYPE_CHECKING:
    from cinderlite.db.models.volumes import Volume


class GroupType(Dated, Base):
    """A kind of group that tenants choose."""

    __tablename__ = "group_types"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None] = mapped_column(String(255))
    is_public: Mapped[bool] = mapped_column(Boolean, default=True)

    spec_rows: Mapped[list[GroupTypeSpec]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True, order_by="GroupTypeSpec.key"
    )


class GroupTypeSpec(Base):
    """One key of a group type's specs."""

    __tablename__ = "group_type_specs"

    group_type_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("group_types.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str | None] = mapped_column(String(255))


class Group(Dated, Named, Working, Recorded, Base):
    """A group; its volumes name it."""

    __tablename__ = "volume_groups"
    __table_args__ = (
        Index("groups_by_project", "project_id", "created_at", "id"),
        Index("groups_busy", "busy", "lease_until"),
        Index("groups_unwritten", "unwritten"),
        Index("groups_by_age", "created_at", "id"),
        Index("groups_by_status", "status", "created_at", "id"),
        Index("groups_named", "name"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    group_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("group_types.id"))
    availability_zone: Mapped[str] = mapped_column(String(255))
    host: Mapped[str] = mapped_column(String(255))
    group_snapshot_id: Mapped[str | None] = mapped_column(String(36))
    source_group_id: Mapped[str | None] = mapped_column(String(36))

    group_type: Mapped[GroupType] = relationship(lazy="raise")
    volume_type_rows: Mapped[list[GroupVolumeType]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )
    volumes: Mapped[list[Volume]] = relationship(
        lazy="raise",
        viewonly=True,
        primaryjoin="and_(Group.id == foreign(Volume.group_id), Volume.deleted.is_(False))",
        order_by="(Volume.created_at, Volume.id)",
    )


class GroupVolumeType(Base):
    """A volume type that a group takes."""

    __tablename__ = "group_volume_types"

    group_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("volume_groups.id", ondelete="CASCADE"), primary_key=True
    )
    volume_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("volume_types.id"), primary_key=True)


class GroupSnapshot(Dated, Named, Working, Recorded, Base):
    """Snapshots of all volumes of a group at one moment; the snapshots name it."""

    __tablename__ = "group_snapshots"
    __table_args__ = (
        Index("group_snapshots_by_project", "project_id", "created_at", "id"),
        Index("group_snapshots_by_group", "group_id"),
        Index("group_snapshots_busy", "busy", "lease_until"),
        Index("group_snapshots_unwritten", "unwritten"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    group_id: Mapped[str] = mapped_column(String(36), ForeignKey("volume_groups.id"))
    group_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("group_types.id"))

    group_type: Mapped[GroupType] = relationship(lazy="raise")

    @property
    def snap(self) -> str:
        """Name of the RBD group, and of its snapshot, that holds one moment of all volumes."""
        return f"group_snapshot-{self.id}"
