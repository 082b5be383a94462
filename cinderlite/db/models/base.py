# SPDX-License-Identifier: Apache-2.0
"""What all tables share."""

from __future__ import annotations

import datetime
import random
import uuid
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Double, Integer, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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


class Dated:
    """When a row was made and last changed."""

    created_at: Mapped[datetime.datetime] = mapped_column(Time, default=utcnow)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(Time)


class Named:
    """Whose a row is and what its owner calls it."""

    project_id: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str] = mapped_column(String(255))
    name: Mapped[str | None] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(255))


def new_mark() -> int:
    """A mark of a change; no two have the same."""
    return random.getrandbits(62)


class Recorded:
    """A row of which Ceph keeps a record, to rebuild a lost database from; see `core.records`.

    Whatever statement changes the row marks it, with no round trip of its own. Who changes only rows that belong to it
    (its metadata) must change something in the row itself, such as `updated_at`.
    """

    #: Another number after each change, until the record has it: then NULL.
    unwritten: Mapped[int | None] = mapped_column(BigInteger, default=new_mark, onupdate=new_mark)


class Working:
    """Columns of a row that an operation may be under way on."""

    status: Mapped[str] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    intent: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: 1 while `intent` is set: what the reconciler's index looks for (JSON cannot be indexed everywhere).
    busy: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[float] = mapped_column(Double, default=0.0)
    #: Why the last try did not finish, in words for the row's owner.
    reason: Mapped[str | None] = mapped_column(Text)
