# SPDX-License-Identifier: Apache-2.0
"""Bringing the limits that librbd keeps to the images of volumes whose QoS specs, type or size have changed.

A volume says by `limits_due` that it is to be looked at, so a change is one statement however many volumes it is about,
and nothing is lost with a process. What a newcomer gets wrong: this is no operation on the volume. It takes no status
and no lease, so others may do the same at the same time; only who finds the note as it was may take it away.
"""

from __future__ import annotations

import logging
import random

from sqlalchemy import select, update

from cinderlite import errors
from cinderlite.context import Backend, World
from cinderlite.core import limits, snapshots
from cinderlite.db import models
from cinderlite.db.indexes import marked, unindexed

LOG = logging.getLogger(__name__)


def reconcile(world: World) -> list[str]:
    """Give images their limits that are due; the ids of the volumes that were dealt with."""
    return [volume_id for backend in world.backends.values() for volume_id in _of_backend(world, backend)]


def _of_backend(world: World, backend: Backend) -> list[str]:
    table = models.Volume
    there = unindexed(table.deleted).is_(False), unindexed(table.host) == backend.pool
    due = marked(table.limits_due), unindexed(table.busy) == 0, *there
    with world.db.read() as session:
        ids = list(session.scalars(select(table.id).where(*due).limit(world.settings.batch)))
    # One that cannot be done now must not stand before the others for ever.
    random.shuffle(ids)
    done = []
    for volume_id in ids:
        try:
            _limit(world, volume_id)
        except (errors.GuestUnreachable, errors.GuestTimeout, errors.CephError) as error:
            LOG.warning("volume %s: its limits cannot be set now: %s", volume_id, error)
        except errors.Unavailable as error:
            LOG.warning("%s: limits cannot be set now: %s", backend.pool, error)
            break
        else:
            done.append(volume_id)
    if len(done) == world.settings.batch:
        world.wake.set()  # There are more.
    return done


def _limit(world: World, volume_id: str) -> None:
    table = models.Volume
    with world.db.read() as session:
        volume = session.get(table, volume_id)
    if volume is None or volume.limits_due is None:
        return  # Somebody else was quicker.
    wanted = limits.of_image(world, volume)
    cluster = world.cluster_of(volume)
    cluster.check()
    # librbd asks the guest that has the image open, and would cut one off that does not answer.
    snapshots.ask_guests(world, volume_id)
    try:
        cluster.limit(volume.image, wanted)
    except errors.ImageNotFound:
        LOG.info("volume %s has no image to be limited", volume_id)
    with world.db.write() as session:
        as_seen = (
            table.id == volume_id,
            table.limits_due == volume.limits_due,
            table.host == volume.host,
            table.busy == 0,
        )
        done = session.execute(update(table).where(*as_seen).values(limits_due=None))
        if done.rowcount == 0:  # type: ignore[attr-defined]
            # Somebody else was here meanwhile: which of the two came last at the image nobody knows.
            session.execute(update(table).where(table.id == volume_id).values(**limits.due()))
