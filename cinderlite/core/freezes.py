# SPDX-License-Identifier: Apache-2.0
"""Keeping guests' file systems still while snapshots of their volumes are taken, and letting them go, whatever happens.

A row in `freezes` says that we may have frozen a server. It is there before the guest's agent is told, and gone only
when the agent has said that all is thawed. Its lease lasts as long as a guest may be frozen, and a process that dies
loses it at once; so thawing is finished by the reconciler like any other work. What a newcomer gets wrong: freezing is
a favour. A guest that cannot be frozen gets its snapshot all the same, as after a power failure, and the log says so.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import holders, states
from cinderlite.core.states import GONE, RETURN, Move
from cinderlite.db import models
from cinderlite.db.session import refusing

LOG = logging.getLogger(__name__)

LIFECYCLE = states.Machine(
    models.Freeze,
    #    verb    from                   through   then  on failure
    Move("thaw", frozenset({"frozen"}), "frozen", GONE, RETURN, patience=30.0),
)  # fmt: skip

#: Seconds between two looks whether another snapshot is done with a server.
_LOOK_AGAIN = 0.2


@contextlib.contextmanager
def frozen(world: World, volume_ids: Sequence[str]) -> Iterator[None]:
    """While the guests that have some volumes keep their file systems still, if that is wanted and they can."""
    with contextlib.ExitStack() as stack:
        if world.settings.freeze_for:
            for server_id in holders.servers(world, volume_ids):
                stack.enter_context(_frozen(world, server_id))
        yield


@contextlib.contextmanager
def _frozen(world: World, server_id: str) -> Iterator[None]:
    owner = _begin(world, server_id)
    if owner is None:
        yield
        return
    most, began = world.settings.freeze_for, time.monotonic()
    # However long the snapshot takes: a guest that stands still for too long is worse than a snapshot that was not.
    timer = threading.Timer(most, _let_go, (world, server_id, owner))
    timer.daemon = True
    timer.start()
    try:
        _freeze(world, server_id)
        yield
    finally:
        timer.cancel()
        _let_go(world, server_id, owner)
        if time.monotonic() - began > most:
            LOG.warning("server %s was thawed after %g s, before its snapshot was there", server_id, most)


def _let_go(world: World, server_id: str, owner: str) -> None:
    """Thaw a server, and forget that if the database answers."""
    try:
        LIFECYCLE.run(world, server_id, owner)
    except errors.DatabaseUnavailable as error:
        LOG.warning("server %s is thawed, and will be once more: %s", server_id, error)
        with contextlib.suppress(errors.Unavailable, errors.GuestError, errors.ServerNotFound, errors.GuestRefused):
            world.guests.find(server_id, fresh=False).thaw()


def _begin(world: World, server_id: str) -> str | None:
    """Write down that a server is about to be frozen; the lease, or None (and the log says why) if it will not be."""
    deadline = time.monotonic() + world.settings.freeze_for
    while _known(world, server_id):
        if time.monotonic() > deadline:
            _tell(server_id, "it is not thawed yet from an earlier snapshot")
            return None
        time.sleep(_LOOK_AGAIN)
    try:
        is_still = world.guests.find(server_id, fresh=False).is_frozen()
    except (errors.GuestError, errors.ServerNotFound):
        return None  # What does not run writes nothing.
    if is_still is not False:
        _tell(server_id, "its file systems are frozen by somebody else" if is_still else "no guest agent answers")
        return None
    row = models.Freeze(id=server_id)
    owner = LIFECYCLE.start(row, "thaw", world.settings.freeze_for, "freeze")
    try:
        with refusing(errors.Conflict("another process was quicker")), world.db.write() as session:
            session.add(row)
    except errors.Conflict as error:
        _tell(server_id, error.message)
        return None
    return owner


def _known(world: World, server_id: str) -> bool:
    with world.db.read() as session:
        return session.get(models.Freeze, server_id) is not None


def _freeze(world: World, server_id: str) -> None:
    try:
        count = world.guests.find(server_id, fresh=False).freeze(world.settings.freeze_for)
    except (errors.Unavailable, errors.GuestRefused, errors.GuestError, errors.ServerNotFound) as error:
        _tell(server_id, error.message)
    else:
        LOG.info("server %s: %d file systems frozen", server_id, count)


def _tell(server_id: str, why: str) -> None:
    LOG.warning("server %s is not frozen, its snapshot will be as after a power failure: %s", server_id, why)


@LIFECYCLE.step("thaw")
def _thaw(world: World, row: models.Freeze, _arguments: Mapping[str, Any]) -> None:
    try:
        world.guests.find(row.id, fresh=False).thaw()
    except (errors.GuestGone, errors.ServerNotFound):
        return  # With the guest its frozen file systems are gone.
    except errors.GuestRefused as error:
        raise errors.GuestUnreachable(row.id, f"its agent does not thaw it: {error.message}") from error
