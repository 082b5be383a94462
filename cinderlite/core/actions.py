# SPDX-License-Identifier: Apache-2.0
"""What was done to a server's disks, and how it ended: what Nova calls instance actions.

Told to whoever polls for it, and nothing depends on it. An action begins in the transaction that accepts the work and
ends in the one that settles it, so it ends as that did, even after a crash.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from sqlalchemy import Select, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.db import models
from cinderlite.guests import Server

#: How long an action is told of.
KEPT = datetime.timedelta(days=30)

ATTACH, DETACH, EXTEND = "attach_volume", "detach_volume", "extend_volume"


def begin(session: Session, ctx: Context, action: str, servers: Iterable[tuple[str, str | None]]) -> None:
    """Note that the caller's request does something to servers, each an id and its host."""
    session.add_all(
        models.ServerAction(
            server_id=server_id,
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            request_id=ctx.request_id,
            action=action,
            host=host,
            started_at=models.utcnow(),
        )
        for server_id, host in servers
    )


def end(session: Session, request_id: str, reason: str | None) -> None:
    """Note that what that request had begun has ended, well or for a reason why not."""
    table = models.ServerAction
    session.execute(
        update(table)
        .where(table.request_id == request_id, table.finished_at.is_(None))
        .values(finished_at=models.utcnow(), reason=reason)
        .execution_options(synchronize_session=False)
    )


def of_server(
    ctx: Context,
    server: Server,
    *,
    most: int,
    after: str | None = None,
    since: datetime.datetime | None = None,
    before: datetime.datetime | None = None,
) -> list[models.ServerAction]:
    """At most so much of what was done to a server, the newest first, or what came before the request `after`.

    Raises BadRequest if that did nothing to it.
    """
    table = models.ServerAction
    query = _query(server).limit(most)
    changed = func.coalesce(table.finished_at, table.started_at)
    if since is not None:
        query = query.where(changed >= since)
    if before is not None:
        query = query.where(changed <= before)
    with ctx.world.db.read() as session:
        if after is not None:
            last = session.scalars(_query(server).where(table.request_id == after).limit(1)).one_or_none()
            if last is None:
                raise errors.BadRequest(f"marker [{after[:64]}] not found")
            earlier = and_(table.started_at == last.started_at, table.id < last.id)
            query = query.where(or_(table.started_at < last.started_at, earlier))
        return list(session.scalars(query))


def _query(server: Server) -> Select[models.ServerAction]:
    table = models.ServerAction
    return select(table).where(table.server_id == server.id).order_by(table.started_at.desc(), table.id.desc())


def get(ctx: Context, server: Server, request_id: str) -> models.ServerAction:
    """What a request did to a server. Raises ActionNotFound."""
    query = _query(server).where(models.ServerAction.request_id == request_id).limit(1)
    with ctx.world.db.read() as session:
        found = session.scalars(query).one_or_none()
    if found is None:
        raise errors.ActionNotFound(request_id)
    return found


def forget(session: Session) -> None:
    """Remove what was done long ago."""
    table = models.ServerAction
    session.execute(delete(table).where(table.started_at < models.utcnow() - KEPT))
