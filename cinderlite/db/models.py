# SPDX-License-Identifier: Apache-2.0
"""All tables. Rows are data, not actors: what may happen to them stands in `core`.

Three columns make an operation survive its process: `intent` says what is to be done (JSON, NULL at rest),
`lease_owner` who is doing it, `lease_until` until when nobody else may. `core.states` is the only writer of them.
Ids are text UUIDs as the API shows them; times are naive UTC.
"""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from sqlalchemy import JSON, Boolean, DateTime, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

#: Microseconds on every database: MariaDB's DATETIME keeps none unless asked.
Time = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def utcnow() -> datetime.datetime:
    """Now, as the naive UTC that the API shows."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def new_id() -> str:
    """A fresh id."""
    return str(uuid.uuid4())


class Base(DeclarativeBase):
    """Root of all tables."""


class Working:
    """Columns of a row that an operation may be under way on."""

    intent: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: 1 while `intent` is set: what the reconciler's index looks for (JSON cannot be indexed everywhere).
    busy: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[float] = mapped_column(Double, default=0.0)
    #: Why the last try did not finish, in words for the row's owner.
    reason: Mapped[str | None] = mapped_column(Text)


class VolumeType(Base):
    """A kind of volume that tenants choose by name."""

    __tablename__ = "volume_types"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None] = mapped_column(String(255))
    is_public: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)


class Volume(Working, Base):
    """A volume; its image is `volume-<id>` in the back end's pool. `size` in GiB."""

    __tablename__ = "volumes"
    __table_args__ = (
        Index("volumes_by_project", "project_id", "deleted", "created_at", "id"),
        Index("volumes_by_age", "deleted", "created_at", "id"),
        Index("volumes_by_name", "project_id", "deleted", "name"),
        Index("volumes_usage", "project_id", "deleted", "size"),
        Index("volumes_busy", "busy", "lease_until"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str] = mapped_column(String(255))
    name: Mapped[str | None] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(255))
    size: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    migration_status: Mapped[str | None] = mapped_column(String(64))
    availability_zone: Mapped[str] = mapped_column(String(255))
    host: Mapped[str] = mapped_column(String(255))
    volume_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("volume_types.id"))
    bootable: Mapped[bool] = mapped_column(Boolean, default=False)
    multiattach: Mapped[bool] = mapped_column(Boolean, default=False)
    consumes_quota: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    deleted: Mapped[bool] = mapped_column(Boolean, default=False)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time)

    volume_type: Mapped[VolumeType] = relationship(lazy="raise")
    metadata_rows: Mapped[list[VolumeMetadata]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )
    attachments: Mapped[list[Attachment]] = relationship(lazy="raise", order_by="Attachment.created_at", viewonly=True)

    @property
    def image(self) -> str:
        """Name of the RBD image: Cinder's, so that either service can take over the other's volumes."""
        return f"volume-{self.id}"


class VolumeMetadata(Base):
    """One key of a volume's metadata."""

    __tablename__ = "volume_metadata"

    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class Attachment(Working, Base):
    """A volume on a server: the one row behind Cinder's attachments and Nova's volumeAttachments.

    The row is gone when the attachment is: a second attachment never meets the ghost of a first one.
    """

    __tablename__ = "attachments"
    __table_args__ = (
        Index("attachments_by_server", "server_id"),
        Index("attachments_by_volume", "volume_id"),
        Index("attachments_by_project", "project_id", "created_at"),
        Index("attachments_busy", "busy", "lease_until"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id"))
    server_id: Mapped[str] = mapped_column(String(36))
    project_id: Mapped[str] = mapped_column(String(255))
    host: Mapped[str | None] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    device: Mapped[str | None] = mapped_column(String(255))
    mode: Mapped[str] = mapped_column(String(2), default="rw")
    tag: Mapped[str | None] = mapped_column(String(60))
    delete_on_termination: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    attached_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: When the server's process was first missed; NULL while it runs.
    guest_missed_at: Mapped[float | None] = mapped_column(Double)

    volume: Mapped[Volume] = relationship(lazy="raise", viewonly=True)


class Quota(Base):
    """A project's own limit for one resource; where there is none the configured default counts."""

    __tablename__ = "quotas"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    resource: Mapped[str] = mapped_column(String(255), primary_key=True)
    limit: Mapped[int] = mapped_column("hard_limit", Integer)


class ProjectLock(Base):
    """A row to lock while a project's usage is summed and compared; it holds nothing else."""

    __tablename__ = "project_locks"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)


class Service(Base):
    """Sign of life of one API host."""

    __tablename__ = "services"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    host: Mapped[str] = mapped_column(String(255), unique=True)
    updated_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)


class Message(Base):
    """What went wrong with a resource after its request was accepted, in words for its owner."""

    __tablename__ = "messages"
    __table_args__ = (Index("messages_by_project", "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str] = mapped_column(String(255))
    resource_type: Mapped[str] = mapped_column(String(36))
    resource_uuid: Mapped[str] = mapped_column(String(36))
    event_id: Mapped[str] = mapped_column(String(64))
    level: Mapped[str] = mapped_column(String(16), default="ERROR")
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
    expires_at: Mapped[datetime.datetime] = mapped_column(Time)
