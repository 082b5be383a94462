# SPDX-License-Identifier: Apache-2.0
"""Quotas, signs of life, user messages."""

from __future__ import annotations

import datetime

from sqlalchemy import Boolean, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from cinderlite.db.models.base import Base, Time, new_id, utcnow


class Quota(Base):
    """A project's own limit for one resource; where there is none the configured default counts."""

    __tablename__ = "quotas"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    resource: Mapped[str] = mapped_column(String(255), primary_key=True)
    limit: Mapped[int] = mapped_column("hard_limit", Integer)


class QuotaClass(Base):
    """A limit of a class of projects; the class `default` stands in for the configured default."""

    __tablename__ = "quota_classes"

    class_name: Mapped[str] = mapped_column(String(255), primary_key=True)
    resource: Mapped[str] = mapped_column(String(255), primary_key=True)
    limit: Mapped[int] = mapped_column("hard_limit", Integer)


class ProjectLock(Base):
    """A row to lock while a project's usage is summed and compared; it holds nothing else."""

    __tablename__ = "project_locks"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)


class Service(Base):
    """Sign of life of one API host, or of one back end of it, and what administrators decided about it."""

    __tablename__ = "services"
    __table_args__ = (UniqueConstraint("host", "binary", name="services_host_binary"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    #: host, or host@backend.
    host: Mapped[str] = mapped_column(String(255))
    #: Cinder's word for the part that it plays: cinder-scheduler, cinder-volume, cinder-backup.
    binary: Mapped[str] = mapped_column(String(64), default="cinder-scheduler")
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    disabled_reason: Mapped[str | None] = mapped_column(String(255))
    #: Whether nothing is to be created or deleted there, what exists being usable.
    frozen: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
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
