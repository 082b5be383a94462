# SPDX-License-Identifier: Apache-2.0
"""What another service tells of a server, as Nova is told: events that happened to its volumes and ports.

What a newcomer gets wrong: an accepted event is not one that was acted on. Most are somebody else's business, and
whether the guest could be told of a new size is seen in the server's actions, not in the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import actions, encryption
from cinderlite.db import models
from cinderlite.guests import Guest

LOG = logging.getLogger(__name__)

EXTENDED = "volume-extended"
#: Those that say by their tag which volume they are about.
OF_VOLUMES = frozenset({EXTENDED, "volume-reimaged"})


def receive(ctx: Context, events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Take events; for each a code: 200 accepted, 404 no such server, 400 not said of which volume, 422 no host."""
    return [_one(ctx, event) for event in events]


def _one(ctx: Context, event: Mapping[str, Any]) -> int:
    try:
        guest = ctx.world.guests.find(event["server_uuid"])
    except errors.ServerNotFound:
        return 404
    if event["name"] in OF_VOLUMES and event.get("tag") is None:
        return 400
    if not guest.server.host:
        return 422
    if event["name"] == EXTENDED:
        _extended(ctx, guest, event["tag"])
    return 200


def _extended(ctx: Context, guest: Guest, volume_id: str) -> None:
    """Show the guest the size that a volume's image has now, if it has the volume from us."""
    table = models.Attachment
    here = table.volume_id == volume_id, table.server_id == guest.server.id, table.managed, table.status == "attached"
    with ctx.world.db.write() as session:
        volume = session.scalars(select(models.Volume).join(table).where(*here)).one_or_none()
        if volume is None:
            return
        actions.begin(session, ctx, actions.EXTEND, [(guest.server.id, guest.server.host)])
    reason = None
    try:
        # What Ceph holds and nothing else: QEMU would make the image fit another size.
        size = ctx.world.cluster_of(volume).info(volume.image).size_bytes - encryption.header_bytes(volume)
        guest.resize(volume.id, size)
    except (errors.Unavailable, errors.BackendError, errors.GuestRefused) as error:
        LOG.warning("server %s was not shown the new size of volume %s: %s", guest.server.id, volume_id, error)
        reason = error.message
    with ctx.world.db.write() as session:
        actions.end(session, ctx.request_id, reason)
