# SPDX-License-Identifier: Apache-2.0
"""Who holds a volume, and what its status is because of that: the one place where that is decided.

What a newcomer gets wrong: a volume may be in a status of its own meanwhile (`extending`, `uploading`, `error`). That
is left alone, and what follows from the attachments becomes the status that it goes back to.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cinderlite.db import models

#: An attachment's status → its volume's, the strongest first. What could not be taken out again may still be there.
SHOWN = {
    "attached": "in-use",
    "error_attaching": "in-use",
    "attaching": "attaching",
    "detaching": "detaching",
    "reserved": "reserved",
}
#: The statuses of a volume that say nothing but who holds it.
FOLLOWING = frozenset({"available", *SHOWN.values()})


def status(attachments: Iterable[str]) -> str:
    """The status of a volume with attachments in these statuses."""
    present = set(attachments)
    return next((shown for one, shown in SHOWN.items() if one in present), "available")


def follow(session: Session, volume_id: str) -> None:
    """Give a volume the status that follows from its attachments as they are in this transaction."""
    held = session.scalars(select(models.Attachment.status).where(models.Attachment.volume_id == volume_id))
    show(session, volume_id, status(held))


def show(session: Session, volume_id: str, wanted: str) -> None:
    """Give a volume one of the statuses that say who holds it, now or for when it is done with something else."""
    table = models.Volume
    session.execute(
        update(table)
        .where(table.id == volume_id, table.status.not_in(FOLLOWING), table.previous_status.in_(FOLLOWING))
        .values(previous_status=wanted)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(table)
        .where(table.id == volume_id, table.status.in_(FOLLOWING))
        .values(status=wanted, updated_at=models.utcnow())
        .execution_options(synchronize_session=False)
    )
