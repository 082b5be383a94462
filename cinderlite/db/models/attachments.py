# SPDX-License-Identifier: Apache-2.0
"""Attachments."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Boolean, Double, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from cinderlite.db.models.base import Base, Dated, Recorded, Time, Working, new_id

if TYPE_CHECKING:
    from cinderlite.db.models.volumes import Volume


class Attachment(Dated, Working, Recorded, Base):
    """A volume on a server: the one row behind Cinder's attachments and Nova's volumeAttachments.

    The row is gone when the attachment is: a second attachment never meets the ghost of a first one.
    """

    __tablename__ = "attachments"
    __table_args__ = (
        Index("attachments_by_server", "server_id"),
        Index("attachments_by_volume", "volume_id"),
        Index("attachments_by_project", "project_id", "created_at"),
        Index("attachments_busy", "busy", "lease_until"),
        Index("attachments_unwritten", "unwritten"),
        Index("attachments_by_age", "created_at", "id"),
        Index("attachments_by_status", "status", "created_at", "id"),
        Index("attachments_of_project_by_status", "project_id", "status", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    volume_id: Mapped[str] = mapped_column(String(36), ForeignKey("volumes.id"))
    #: NULL for a volume that is attached to a host itself.
    server_id: Mapped[str | None] = mapped_column(String(36))
    project_id: Mapped[str] = mapped_column(String(255))
    host: Mapped[str | None] = mapped_column(String(255))
    device: Mapped[str | None] = mapped_column(String(255))
    #: "rw" or "ro"; NULL if the one who attaches did not say.
    mode: Mapped[str | None] = mapped_column(String(2))
    tag: Mapped[str | None] = mapped_column(String(60))
    delete_on_termination: Mapped[bool] = mapped_column(Boolean, default=False)
    attached_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: Whether this service plugs the disk in. Else somebody else does, such as a Nova, and only tells.
    managed: Mapped[bool] = mapped_column(Boolean, default=True)
    #: What the other one said of the machine that opens the image; NULL while the attachment is only reserved.
    connector: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: Addresses in Ceph of the server's client that has the image open; NULL if that was not seen.
    clients: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    #: Part of the names of its cephx users, one for each place of the image; NULL: it never had one of its own.
    cephx_name: Mapped[str | None] = mapped_column(String(64))
    #: When the server's process was first missed; NULL while it runs.
    guest_missed_at: Mapped[float | None] = mapped_column(Double)

    volume: Mapped[Volume] = relationship(lazy="raise", viewonly=True)


class Freeze(Working, Base):
    """A server whose file systems we may have frozen, and are to thaw; `id` is the server's."""

    __tablename__ = "freezes"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)


class Leftover(Working, Base):
    """A disk that was taken from a server by force, and that the server may still have; `id` was the attachment's."""

    __tablename__ = "leftovers"
    __table_args__ = (Index("leftovers_by_server", "server_id"), Index("leftovers_busy", "busy", "lease_until"))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    server_id: Mapped[str] = mapped_column(String(36))
    volume_id: Mapped[str] = mapped_column(String(36))
    #: The pool, as in a volume's `host`, whose cluster keeps the clients out.
    host: Mapped[str] = mapped_column(String(255))
    clients: Mapped[list[str]] = mapped_column(JSON)
    fenced_until: Mapped[float] = mapped_column(Double)


class OwnClient(Base):
    """A connection to Ceph of one of the service's own processes, so that nobody takes it for a server's."""

    __tablename__ = "own_clients"

    address: Mapped[str] = mapped_column(String(255), primary_key=True)
    seen_at: Mapped[float] = mapped_column(Double)
