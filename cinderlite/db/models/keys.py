# SPDX-License-Identifier: Apache-2.0
"""Keys of encrypted volumes, for a service that keeps them itself."""

from __future__ import annotations

import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from cinderlite.db.models.base import Base, Time, utcnow


class EncryptionKey(Base):
    """A secret, which only the key in a file of the service's hosts unwraps. The row is gone when the secret is."""

    __tablename__ = "encryption_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    wrapped: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
