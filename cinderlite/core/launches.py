# SPDX-License-Identifier: Apache-2.0
"""With which disks a server is to be started: those that its attachments say, at this moment.

What a newcomer gets wrong: nothing is reserved or changed by asking. What is attached or detached between the question
and the start is made good by the reconciler, as after any restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import attachments
from cinderlite.db import models
from cinderlite.guests import RbdDisk, Server, launch
from cinderlite.guests import disks as plug

#: Where the files with secrets are, if nothing else is said.
DIRECTORY = "/run/cinderlite/secrets"
#: As the volume to boot from: none of them.
NO_VOLUME = "none"


def disks(world: World, server: Server, boot: str | None = None) -> tuple[list[RbdDisk], str | None]:
    """A server's disks, and the id of the volume that it boots from, whose disk is the first.

    That is the volume `boot`, or without it the first bootable one that was attached, if any. Raises InvalidInput for
    one that the server does not have, Unavailable.
    """
    table = models.Attachment
    with world.db.read() as session:
        mine = table.server_id == server.id, table.managed, table.status == "attached"
        query = select(table).where(*mine).options(joinedload(table.volume)).order_by(table.created_at, table.id)
        rows = list(session.scalars(query))
    first = _boot(rows, boot)
    rows.sort(key=lambda row: row.volume_id != first)
    return [attachments.disk_of(world, row, row.volume, server) for row in rows], first


def _boot(rows: list[models.Attachment], wanted: str | None) -> str | None:
    if wanted == NO_VOLUME:
        return None
    if wanted is None:
        return next((row.volume_id for row in rows if row.volume.bootable), None)
    if wanted not in {row.volume_id for row in rows}:
        raise errors.InvalidInput(f"volume {wanted[:64]} is not attached to the server, which could not boot from it")
    return wanted


def qemu(world: World, server: Server, boot: str | None, buses: Sequence[str], directory: str) -> launch.Arguments:
    """What is added to QEMU's command line. Of a server that runs each disk stays where it is plugged in now.

    Raises InvalidInput, NoFreePlace, Unavailable.
    """
    if not directory.startswith("/"):
        raise errors.InvalidInput("the directory of the secrets must begin with a slash")
    volumes, first = disks(world, server, boot)
    try:
        held = world.guests.find(server.id, fresh=False).places()
    except errors.GuestGone:
        held = {}
    return launch.arguments(server.id, volumes, boot=first, buses=buses, directory=directory, held=held)


def libvirt(world: World, server: Server, boot: str | None) -> launch.Xml:
    """The elements for a domain. Raises InvalidInput, GuestRefused, Unavailable."""
    volumes, first = disks(world, server, boot)
    return launch.xml(server.id, volumes, boot=first)


def told(made: launch.Arguments | launch.Xml) -> dict[str, Any]:
    """Either for JSON, with what opens the volumes."""
    if isinstance(made, launch.Xml):
        secrets = [{"xml": xml, "value": value} for xml, value in made.secrets]
        return {"disks": list(made.disks), "secrets": secrets}
    return {
        "arguments": list(made.words),
        "secrets": [{"file": one.file, "content": one.content} for one in made.secrets],
        "volumes": [_plugged(volume_id, place) for volume_id, place in made.places.items()],
    }


def _plugged(volume_id: str, place: plug.Place) -> Mapping[str, str]:
    return {"volume_id": volume_id, "device_id": plug.device_id(volume_id), "driver": place.driver, "bus": place.bus}


def find(world: World, which: str) -> Server:
    """The server of that id or name. Raises ServerNotFound, InvalidInput if several have that name."""
    try:
        return world.guests.find(which).server
    except errors.ServerNotFound:
        named = [server for server in world.guests.servers() if server.name == which]
        if len(named) > 1:
            raise errors.InvalidInput(f"several servers are called {which}; give the id") from None
        if not named:
            raise
        return named[0]
