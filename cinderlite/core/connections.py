# SPDX-License-Identifier: Apache-2.0
"""How somebody else opens a volume's image: what Cinder calls connection info.

It names the image, the monitors and the cephx user, never a key: who opens the image has one of its own. Monitors
move, so nothing of it is stored; it is written anew for every answer.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import joinedload

from cinderlite.context import World
from cinderlite.core import limits, types
from cinderlite.db import models

DRIVER = "rbd"


def data(world: World, volume_id: str, mode: str | None) -> dict[str, Any]:
    """What opens a volume in `mode` ("rw", "ro", None for what the volume allows). Raises Unavailable."""
    with world.db.read() as session:
        volume = session.get_one(
            models.Volume, volume_id,
            options=[joinedload(models.Volume.volume_type).selectinload(models.VolumeType.extra_spec_rows)],
        )  # fmt: skip
        told = limits.told(session, volume)
    backend = world.backend(volume.host)
    cluster = world.cluster_of(volume)
    monitors = cluster.monitors()
    return {
        "name": f"{cluster.place}/{volume.image}",
        "hosts": [host for host, _ in monitors],
        "ports": [str(port) for _, port in monitors],
        "cluster_name": backend.cluster_name,
        "auth_enabled": cluster.user is not None,
        "auth_username": cluster.user,
        "secret_type": "ceph",
        "secret_uuid": backend.secret_uuid or cluster.fsid(),
        "volume_id": volume.id,
        "discard": True,
        "keyring": None,
        "qos_specs": told,
        "access_mode": "ro" if volume.readonly else mode or "rw",
        "encrypted": volume.encrypted,
        "cacheable": not volume.multiattach
        and types.extra_specs(volume.volume_type).get("cacheable", "").lower() == "<is> true",
    }


def of(world: World, attachment: models.Attachment) -> dict[str, Any]:
    """An attachment's connection info, in one level; nothing while it has no connector, or if it is our own."""
    connector = attachment.connector
    if connector is None or attachment.managed:
        return {}
    return {
        **data(world, attachment.volume_id, attachment.mode),
        "driver_volume_type": DRIVER,
        "attachment_id": attachment.id,
        "enforce_multipath": bool(connector.get("enforce_multipath", False)),
    }


def prepare(world: World, volume: models.Volume) -> None:
    """Make sure that the image can be opened by those who are told how to. Raises Unavailable."""
    cluster = world.cluster_of(volume)
    cluster.check()
    if volume.multiattach:
        cluster.share(volume.image)
