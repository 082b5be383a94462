# SPDX-License-Identifier: Apache-2.0
"""Volume types and what hangs on them."""

from __future__ import annotations

from sqlalchemy import Boolean, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from cinderlite.db.models.base import Base, Dated, new_id


class QosSpecs(Dated, Base):
    """Limits for the volumes of the types it is associated with; `consumer` is back-end, front-end or both."""

    __tablename__ = "qos_specs"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    consumer: Mapped[str] = mapped_column(String(16), default="back-end")

    keys: Mapped[list[QosKey]] = relationship(lazy="raise", cascade="all, delete-orphan", passive_deletes=True)


class QosKey(Base):
    """One limit."""

    __tablename__ = "qos_keys"

    qos_specs_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("qos_specs.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class VolumeType(Dated, Base):
    """A kind of volume that tenants choose by name."""

    __tablename__ = "volume_types"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None] = mapped_column(String(255))
    is_public: Mapped[bool] = mapped_column(Boolean, default=True)
    qos_specs_id: Mapped[str | None] = mapped_column(String(36), ForeignKey("qos_specs.id"))

    extra_spec_rows: Mapped[list[ExtraSpec]] = relationship(
        lazy="raise", cascade="all, delete-orphan", passive_deletes=True, order_by="ExtraSpec.key"
    )
    encryption: Mapped[TypeEncryption | None] = relationship(lazy="raise", viewonly=True)


class ExtraSpec(Base):
    """One key of a type's extra specs."""

    __tablename__ = "volume_type_extra_specs"

    volume_type_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class TypeAccess(Base):
    """A project that may use a type that is not public."""

    __tablename__ = "volume_type_access"
    __table_args__ = (Index("volume_type_access_by_project", "project_id"),)

    volume_type_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True
    )
    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)


class TypeEncryption(Dated, Base):
    """How the volumes of a type are encrypted; `key_size` in bits, `control_location` front-end or back-end."""

    __tablename__ = "volume_type_encryption"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    volume_type_id: Mapped[str] = mapped_column(
        String(36), ForeignKey("volume_types.id", ondelete="CASCADE"), unique=True
    )
    provider: Mapped[str] = mapped_column(String(255))
    control_location: Mapped[str] = mapped_column(String(16))
    cipher: Mapped[str | None] = mapped_column(String(255))
    key_size: Mapped[int | None] = mapped_column(Integer)


class DefaultType(Base):
    """The type of volumes that a project creates without one."""

    __tablename__ = "default_volume_types"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    volume_type_id: Mapped[str] = mapped_column(String(36), ForeignKey("volume_types.id"))
