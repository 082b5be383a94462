# SPDX-License-Identifier: Apache-2.0
"""Disks that were taken from servers by force (`fencing`), and that those servers may still have when they come back.

No attachment tells of such a disk any more, and its volume may long be elsewhere. A row here remembers it: the
reconciler asks the server for the disk until that lets it go or does not exist any more, and keeps its client fenced
for as long. What a newcomer gets wrong: the disk must be gone before the same volume can be attached to the same server
again, for QEMU would take the dead one for the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import states
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import clock, models

LOG = logging.getLogger(__name__)

LIFECYCLE = states.Machine(
    models.Leftover,
    #    verb      from                 through  then  on failure
    Move("remove", frozenset({"left"}), "left", GONE, RETURN, patience=60.0),
)  # fmt: skip

#: Seconds that the reconciler waits for a guest to let go; it asks again.
_WAIT = 0.5


def remember(world: World, attachment: models.Attachment, volume: models.Volume, clients: list[str]) -> None:
    """Note that the server may still have the disk, right before its attachment ends; done if it is noted already."""
    row = models.Leftover(
        id=attachment.id,
        server_id=attachment.server_id,
        volume_id=volume.id,
        host=volume.host,
        clients=clients,
        fenced_until=clock.now() + world.settings.fence_for,
    )
    LIFECYCLE.start(row, "remove", 0.0, "force-detach")
    row.lease_owner = None  # Nobody is at it; the reconciler is the first.
    with world.db.write() as session:
        if session.get(models.Leftover, row.id) is None:
            session.add(row)


def of(session: Session, server_id: str | None, volume_id: str) -> list[str]:
    """Ids of what a server may still have of a volume that it lost by force."""
    table = models.Leftover
    return list(session.scalars(select(table.id).where(table.server_id == server_id, table.volume_id == volume_id)))


def remove(world: World, ids: Sequence[str], server_id: str | None, volume_id: str) -> None:
    """Have a server let go of them, before it gets the volume anew. Raises Conflict if it does not."""
    for row_id in ids:
        with world.db.write() as session:
            LIFECYCLE.hasten(session, row_id)
        owner = LIFECYCLE.claim(world, row_id, world.settings.lease)
        if owner is not None and LIFECYCLE.run(world, row_id, owner).word == "done":
            continue
        raise errors.Conflict(
            f"Server {server_id} still has the disk of volume {volume_id} that was taken from it by force, and which "
            f"is of no use any more. Let the guest run until it lets go, or reboot it; then try again."
        )


@LIFECYCLE.step("remove")
def _remove(world: World, row: models.Leftover, _arguments: Mapping[str, Any]) -> None:
    try:
        world.guests.find(row.server_id, fresh=False).detach(row.volume_id, _WAIT)
    except errors.GuestGone:
        return
    except errors.ServerNotFound as error:
        if _fenced_for(world, row) > 0:  # It may be known again when its host is back.
            raise errors.GuestUnreachable(row.server_id, "no host knows it") from error
        return
    except errors.Unavailable:
        _keep_fenced(world, row)
        raise
    except errors.GuestRefused as error:
        raise errors.GuestUnreachable(row.server_id, error.message) from error
    LOG.info("server %s has let go of the disk of volume %s that was taken from it", row.server_id, row.volume_id)


def _keep_fenced(world: World, row: models.Leftover) -> None:
    """Fence its clients anew when half of the time has passed: it may write again the moment that they are not."""
    most = world.settings.fence_for
    if not row.clients or _fenced_for(world, row) > most / 2:
        return
    world.backend(row.host).cluster.fence(row.clients, most)
    with world.db.write() as session:
        session.get_one(models.Leftover, row.id).fenced_until = clock.now() + most


def _fenced_for(world: World, row: models.Leftover) -> float:
    """Seconds for which its clients are fenced from now on; not above 0 when they are no longer."""
    with world.db.read() as session:
        return row.fenced_until - clock.read(session)
