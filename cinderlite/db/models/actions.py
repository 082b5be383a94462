# SPDX-License-Identifier: Apache-2.0
"""What was done to servers on somebody's behalf."""

from __future__ import annotations

import datetime

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from cinderlite.db.models.base import Base, Time, new_id


class ServerAction(Base):
    """One thing that a request did to a server's disks; kept for a while, and nothing depends on it."""

    __tablename__ = "server_actions"
    __table_args__ = (
        Index("server_actions_by_server", "server_id", "started_at"),
        Index("server_actions_by_request", "request_id"),
        Index("server_actions_by_age", "started_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    server_id: Mapped[str] = mapped_column(String(36))
    project_id: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str] = mapped_column(String(255))
    #: By Nova's name, such as "attach_volume".
    action: Mapped[str] = mapped_column(String(64))
    #: Where the server was.
    host: Mapped[str | None] = mapped_column(String(255))
    started_at: Mapped[datetime.datetime] = mapped_column(Time)
    #: NULL while its end is not known.
    finished_at: Mapped[datetime.datetime | None] = mapped_column(Time)
    #: Why it failed; NULL if it did not, or not yet.
    reason: Mapped[str | None] = mapped_column(Text)
