# SPDX-License-Identifier: Apache-2.0
"""User messages: what went wrong after a request was accepted, in words for the tenant.

Event ids follow Cinder's pattern VOLUME_<RESOURCE>_<action>_<detail>, so that clients that sort by them keep working.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.db import models

#: Days that a message is kept (Cinder's message_ttl is 30 days).
KEPT = datetime.timedelta(days=30)

#: The verb of a volume for which there is no place, whatever else was to be done.
SCHEDULE = "schedule"

#: Cinder's numbers for what went wrong.
UNKNOWN_ERROR = "001"
NO_BACKEND = "003"

#: What a message is about: Cinder's word for it, and verb → (Cinder's action number, its words).
ABOUT: dict[type[Any], tuple[str, dict[str, tuple[str, str]]]] = {
    models.Volume: (
        "VOLUME",
        {
            SCHEDULE: ("001", "schedule allocate volume"),
            "create": ("008", "create volume from backend storage"),
            "fill": ("008", "create volume from backend storage"),
            "download": ("005", "copy image to volume"),
            "upload": ("003", "copy volume to image"),
            "reimage": ("016", "reimage volume"),
            "delete": ("001", "delete volume"),
            "extend": ("007", "extend volume"),
            "revert": ("001", "revert volume"),
            "migrate": ("001", "migrate volume"),
            "retype_and_move": ("001", "retype volume"),
            "hand_over": ("001", "transfer volume"),
            "mirror": ("001", "migrate volume"),
            "retype_and_mirror": ("001", "retype volume"),
        },
    ),
    models.Attachment: (
        "VOLUME",
        {
            "attach": ("002", "attach volume"),
            "undo": ("002", "attach volume"),
            "detach": ("004", "update attachment"),
            "end": ("004", "update attachment"),
            "force": ("004", "update attachment"),
        },
    ),
    models.Snapshot: (
        "VOLUME_SNAPSHOT",
        {"create": ("009", "create snapshot"), "delete": ("010", "delete snapshot")},
    ),
    models.Backup: (
        "VOLUME_BACKUP",
        {
            "create": ("013", "create backup"),
            "import": ("013", "create backup"),
            "delete": ("014", "delete backup"),
            "restore": ("015", "restore backup"),
        },
    ),
}


def leave(
    session: Session, row: Any, verb: str, text: str, *, request_id: str = "", detail: str = UNKNOWN_ERROR
) -> None:
    """Leave a message about a row for its project, in the transaction that settles it; nothing for a verb of ours."""
    kind, actions = ABOUT[type(row)]
    if verb not in actions:
        return
    number, words = actions[verb]
    now = models.utcnow()
    session.add(
        models.Message(
            project_id=row.project_id,
            request_id=request_id,
            resource_type=kind,
            resource_uuid=row.volume_id if isinstance(row, models.Attachment) else row.id,
            event_id=f"VOLUME_{kind}_{number}_{detail}",
            text=f"{words}: {text}",
            created_at=now,
            expires_at=now + KEPT,
        )
    )


def get(ctx: Context, message_id: str) -> models.Message:
    """The caller's message of that id. Raises MessageNotFound."""
    with ctx.world.db.read() as session:
        message = session.get(models.Message, message_id)
    if message is None or (message.project_id != ctx.project_id and not ctx.is_admin):
        raise errors.MessageNotFound(message_id)
    return message


def visible(ctx: Context, *, all_projects: bool = False) -> Select[models.Message]:
    """The messages of the caller's project; an administrator asks for all projects explicitly."""
    query = select(models.Message).where(models.Message.expires_at > models.utcnow())
    if not (ctx.is_admin and all_projects):
        query = query.where(models.Message.project_id == ctx.project_id)
    return query


def delete(ctx: Context, message: models.Message) -> None:
    """Remove a message."""
    with ctx.world.db.write() as session:
        row = session.get(models.Message, message.id)
        if row is not None:
            session.delete(row)
