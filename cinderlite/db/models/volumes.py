# SPDX-License-Identifier: Apache-2.0
"""Volumes, their snapshots, and their transfers between projects."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Boolean, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from cinderlite.db.models.attachments import Attachment
from cinderlite.db.models.base import Base, Dated, Named, Recorded, Time, Working, new_id, utcnow
from cinderlite.db.models.types import VolumeType

if TYPE_CHECKING:
    from cinderlite.db.models.groups import Group


class Volume(Dated, Named, Working, Recorded, Base):
    """A volume; its image is `volume-<id>` in its back end's pool, in `namespace`. `size` in GiB."""

    __tablename__ = "volumes"
    __table_args__ = (
        Index("volumes_by_project", "project_id", "deleted", "created_at", "id"),
        Index("volumes_by_age", "deleted", "created_at", "id"),
        Index("volumes_by_name", "project_id", "deleted", "name", "created_at", "id"),
        Index("volumes_usage", "project_id", "deleted", "consumes_quota", "volume_type_id", "size"),
        Index("volumes_busy", "busy", "lease_until"),
        Index("volumes_unwritten", "unwritten"),
        Index("volumes_by_group", "group_id"),
        Index("volumes_by_type", "volume_type_id", "deleted"),
        Index("volumes_by_host", "host", "deleted"),
        Index("volumes_by_status", "deleted", "status", "created_at", "id"),
        Index("volumes_of_project_by_status", "project_id", "deleted", "status", "created_at", "id"),
        Index("volumes_named", "deleted", "name", "created_at", "id"),
        Index("volumes_by_zone", "deleted", "availability_zone"),
        Index("volumes_by_depth", "deleted", "clone_depth"),
        Index("volumes_restored", "restored_from"),
        Index("volumes_by_purge", "purge_at"),
        Index("volumes_limits_due", "limits_due"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    size: Mapped[int] = mapped_column(Integer)
    migration_status: Mapped[str | None] = mapped_column(String(64))
    availability_zone: Mapped[str] = mapped_column(String(255))
    #: The pool as Cinder writes it, host@backend#pool: which back end has the image.
    host: Mapped[str] = mapped_column(String(255))
    #: The RBD namespace of that pool that the image is in, whatever the configuration says by now; "" for the default.
    namespace: Mapped[str] = mapped_column(String(255), default="", server_default="")
    volume_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("volume_types.id"))
    bootable: Mapped[bool] = mapped_column(Boolean, default=False)
    multiattach: Mapped[bool] = mapped_column(Boolean, default=False)
    consumes_quota: Mapped[bool] = mapped_column(Boolean, default=True)
    #: Whether only reading is allowed; NULL until somebody said so, which the API shows as no metadata key.
    readonly: Mapped[bool | None] = mapped_column(Boolean)
    snapshot_id: Mapped[str | None] = mapped_column(String(36))
    source_volid: Mapped[str | None] = mapped_column(String(36))
    group_id: Mapped[str | None] = mapped_column(String(36))
    encryption_key_id: Mapped[str | None] = mapped_column(String(36))
    #: At most so many images are below this one; fewer when one of those was made whole since.
    clone_depth: Mapped[int] = mapped_column(Integer, default=0)
    #: The backup whose data its image still shares, until it is made whole.
    restored_from: Mapped[str | None] = mapped_column(String(36))
    #: Other than before whenever the limits of the image are to be looked at anew; NULL once they are as they should.
    limits_due: Mapped[str | None] = mapped_column(String(36))
    deleted: Mapped[bool] = mapped_column(Boolean, default=False)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: When (seconds since 1970) the image of a deleted volume that can still be brought back is to go.
    purge_at: Mapped[float | None] = mapped_column(Double)
    #: What else is needed to bring it back: `image_id` and `snaps` in Ceph, `snapshots` as their rows were.
    kept: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: The pool, as in `host`, that has the volume's record, and those of its snapshots and attachments.
    record_host: Mapped[str | None] = mapped_column(String(255))

    volume_type: Mapped[VolumeType] = relationship(lazy="raise")
    metadata_rows: Mapped[list[VolumeMetadata]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )
    image_metadata_rows: Mapped[list[ImageMetadata]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )
    attachments: Mapped[list[Attachment]] = relationship(
        lazy="raise", order_by="(Attachment.created_at, Attachment.id)", viewonly=True
    )
    group: Mapped[Group | None] = relationship(
        lazy="raise", viewonly=True, primaryjoin="foreign(Volume.group_id) == Group.id"
    )

    @property
    def encrypted(self) -> bool:
        """Whether its data are encrypted, or will be: it has a key, or is on its way to one."""
        return self.encryption_key_id is not None or "encryption" in (self.intent or {})

    @property
    def image(self) -> str:
        """Name of the RBD image: Cinder's, so that either service can take over the other's volumes."""
        return f"volume-{self.id}"


class Flatten(Working, Base):
    """A volume whose image is being made whole, or was begun to be; `id` is the volume's, which knows nothing of it."""

    __tablename__ = "flattens"

    id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    #: Addresses in Ceph of the client that does it, so that nobody takes it for somebody who uses the volume.
    clients: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))


class VolumeMetadata(Base):
    """One key of a volume's metadata."""

    __tablename__ = "volume_metadata"

    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class ImageMetadata(Base):
    """One key of what is known of the image that a volume was made from."""

    __tablename__ = "volume_image_metadata"

    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Snapshot(Dated, Named, Working, Recorded, Base):
    """A snapshot; in RBD it is `snapshot-<id>` of its volume's image. The row is gone when the snapshot is."""

    __tablename__ = "snapshots"
    __table_args__ = (
        Index("snapshots_by_project", "project_id", "created_at", "id"),
        Index("snapshots_by_age", "created_at", "id"),
        Index("snapshots_by_volume", "volume_id", "created_at"),
        Index("snapshots_busy", "busy", "lease_until"),
        Index("snapshots_unwritten", "unwritten"),
        Index("snapshots_by_group_snapshot", "group_snapshot_id"),
        Index("snapshots_by_status", "status", "created_at", "id"),
        Index("snapshots_of_project_by_status", "project_id", "status", "created_at", "id"),
        Index("snapshots_usage", "project_id", "consumes_quota", "volume_type_id", "volume_size"),
        Index("snapshots_by_name", "project_id", "name"),
        Index("snapshots_named", "name"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id"))
    volume_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("volume_types.id"))
    #: GiB that the volume had.
    volume_size: Mapped[int] = mapped_column(Integer)
    progress: Mapped[str] = mapped_column(String(8), default="0%")
    consumes_quota: Mapped[bool] = mapped_column(Boolean, default=True)
    group_snapshot_id: Mapped[str | None] = mapped_column(String(36))
    encryption_key_id: Mapped[str | None] = mapped_column(String(36))
    #: The snapshot of several images that has its data, NULL for the usual case: its image has them under `snap`.
    group_snap: Mapped[str | None] = mapped_column(String(255))

    volume: Mapped[Volume] = relationship(lazy="raise", viewonly=True)
    metadata_rows: Mapped[list[SnapshotMetadata]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True
    )

    @property
    def snap(self) -> str:
        """Name of the RBD snapshot: Cinder's."""
        return f"snapshot-{self.id}"

    @property
    def held_as(self) -> str:
        """Name of what has its data: `snap`, or a snapshot of several images, which can only be read."""
        return self.group_snap or self.snap


class SnapshotMetadata(Base):
    """One key of a snapshot's metadata."""

    __tablename__ = "snapshot_metadata"

    snapshot_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class Transfer(Base):
    """An offer of a volume to whoever knows the key. It stays after its end, for the record."""

    __tablename__ = "transfers"
    __table_args__ = (
        Index("transfers_by_project", "source_project_id", "deleted", "created_at", "id"),
        Index("transfers_by_volume", "volume_id", "deleted"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id"))
    name: Mapped[str | None] = mapped_column(String(255))
    #: Salted digest of the key, which only the one who made the offer was shown.
    salt: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(128))
    source_project_id: Mapped[str] = mapped_column(String(255))
    destination_project_id: Mapped[str | None] = mapped_column(String(255))
    no_snapshots: Mapped[bool] = mapped_column(Boolean, default=False)
    accepted: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
    deleted: Mapped[bool] = mapped_column(Boolean, default=False)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(Time)
