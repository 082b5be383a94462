# SPDX-License-Identifier: Apache-2.0
"""How somebody else opens a volume's image: what Cinder calls connection info.

It names the image, the monitors and the cephx user, never a key: who opens the image has one of its own. Monitors
move, so nothing of it is stored; it is written anew for every answer.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite.context import World
from cinderlite.core import types
from cinderlite.db import models

DRIVER = "rbd"
#: Limits that can be given for each GiB of the volume.
_SCALED = tuple(f"{what}_{unit}_sec" for what in ("read", "write", "total") for unit in ("iops", "bytes"))


def data(world: World, volume_id: str, mode: str | None) -> dict[str, Any]:
    """What opens a volume in `mode` ("rw", "ro", None for what the volume allows). Raises Unavailable."""
    with world.db.read() as session:
        volume = session.get_one(
            models.Volume, volume_id,
            options=[joinedload(models.Volume.volume_type).selectinload(models.VolumeType.extra_spec_rows)],
        )  # fmt: skip
        limits = _limits(session, volume)
    backend = world.backend(volume.host)
    cluster = backend.cluster
    monitors = cluster.monitors()
    return {
        "name": f"{cluster.pool}/{volume.image}",
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
        "qos_specs": limits,
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
    cluster = world.cluster(volume.host)
    cluster.check()
    if volume.multiattach:
        cluster.share(volume.image)


def _limits(session: Session, volume: models.Volume) -> dict[str, str] | None:
    """The limits that the one who opens the volume is to keep, those for each GiB multiplied by its size."""
    specs_id = volume.volume_type.qos_specs_id
    if specs_id is None:
        return None
    specs = session.get_one(models.QosSpecs, specs_id, options=[selectinload(models.QosSpecs.keys)])
    if specs.consumer not in ("front-end", "both"):
        return None
    limits = {row.key: row.value for row in specs.keys}
    for key in _SCALED:
        each, least = limits.pop(f"{key}_per_gb", None), limits.pop(f"{key}_per_gb_min", "0")
        if each is not None:
            value = max(int(least), int(each) * volume.size)
            limits[key] = str(min(value, int(limits.pop(f"{key}_max", value))))
    return limits
