# SPDX-License-Identifier: Apache-2.0
"""Who holds a volume, and what its status is because of that: the one place where that is decided.

What a newcomer gets wrong: a volume may be in a status of its own meanwhile (`extending`, `uploading`, `error`). That
is left alone, and what follows from the attachments becomes the status that it goes back to.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

from sqlalchemy import BindParameter, Update, bindparam, case, or_, select, update
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.ceph.cluster import HeldImage
from cinderlite.context import World
from cinderlite.core import states
from cinderlite.db import models
from cinderlite.guests import threads

LOG = logging.getLogger(__name__)

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


def _showing() -> Update:
    table = models.Volume
    wanted: BindParameter[str] = bindparam("wanted")
    now, later = table.status.in_(FOLLOWING), table.previous_status.in_(FOLLOWING)
    changed = update(table).where(table.id == bindparam("volume"), or_(now, later))
    return changed.values(
        status=case((now, wanted), else_=table.status),
        previous_status=case((now, table.previous_status), else_=wanted),
        updated_at=case((now, bindparam("moment")), else_=table.updated_at),
    ).execution_options(synchronize_session=False)


#: Of a volume's two statuses it is the one that follows which changes. Made once: every attach and detach needs it.
_SHOW = _showing()


def strangers(world: World, volume: models.Volume) -> list[str]:
    """Addresses of the clients that have a volume's image open, without those of this service. Raises ImageNotFound."""
    found = seen(world, volume)
    if found:  # Maybe one of ours ended in between; it closes the image before it is no longer noted.
        found = found.intersection(world.cluster_of(volume).info(volume.image).watchers)
    return sorted(found)


def seen(world: World, volume: models.Volume, watchers: Iterable[str] | None = None) -> set[str]:
    """The same by one look, in which there can be one of this service's that has just ended; or of those `watchers`.

    Raises ImageNotFound.
    """
    found = set(world.cluster_of(volume).info(volume.image).watchers if watchers is None else watchers)
    return found - ours(world, volume.id) if found else found


class Held:
    """A volume's image as it was found at one moment, which is opened beside what is done meanwhile."""

    def __init__(self, volume: models.Volume, opening: Future[HeldImage]) -> None:
        self._place = _place(volume)
        self._opening = opening

    def is_of(self, volume: models.Volume) -> bool:
        """Whether it is a volume's image as that is found now, and is open or will be."""
        return self._place == _place(volume) and self._opening.exception() is None

    def result(self) -> HeldImage:
        """It, when it is open. Raises ImageNotFound, Unavailable, BackendMissing, CephError."""
        return self._opening.result()


def _place(volume: models.Volume) -> tuple[str, str, str]:
    return volume.host, volume.namespace, volume.image


@contextlib.contextmanager
def holding(world: World, volume: models.Volume) -> Iterator[Held]:
    """Open a volume's image beside what is done meanwhile, which is as quick as not to look at it more than once."""
    with (
        contextlib.ExitStack() as after,
        threads.beside("hold", lambda: world.cluster_of(volume).hold(volume.image)) as opening,
    ):
        after.callback(_close, opening)
        yield Held(volume, opening)


def _close(opening: Future[HeldImage]) -> None:
    if opening.exception() is None:
        opening.result().close()


def doubt(world: World, volume: models.Volume) -> None:
    """Have Ceph make sure of strangers that a volume is refused for, so that none is counted who died long ago.

    If so, that shows half a minute later; as well as can be.
    """
    try:
        world.cluster_of(volume).look_anew(volume.image)
    except (errors.Unavailable, errors.CephError) as error:
        LOG.warning("volume %s: who has it open is not made sure of: %s", volume.id, error)


def ours(world: World, volume_id: str) -> frozenset[str]:
    """Addresses of the client, maybe another process's, by which the volume's image is being made whole."""
    with world.db.look() as connection:
        clients = connection.scalar(select(models.Flatten.clients).where(models.Flatten.id == volume_id))
    return frozenset(clients or ())


def servers(world: World, volume_ids: Sequence[str]) -> list[str]:
    """The servers that we plugged some volumes into, each once."""
    table = models.Attachment
    plugged = table.volume_id.in_(volume_ids), table.managed, table.server_id.is_not(None)
    with world.db.read() as session:
        return [str(found) for found in session.scalars(select(table.server_id).where(*plugged).distinct())]


def leave_off(world: World, volume_id: str) -> None:
    """Have the image of a volume that is at work be left alone until that is done. Raises LeavingOff until it is."""
    with world.db.write() as session:
        at_it = states.stop(session, models.Flatten, volume_id)
    if at_it:
        raise errors.LeavingOff(volume_id)


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
    session.execute(_SHOW, {"volume": volume_id, "wanted": wanted, "moment": models.utcnow()})
