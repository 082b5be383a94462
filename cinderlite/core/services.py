# SPDX-License-Identifier: Apache-2.0
"""Signs of life of the API hosts, and the figures of the pool behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import exc, func, select

from cinderlite.context import Backend, Context, World
from cinderlite.core import capabilities
from cinderlite.db import models

GIB = 1024**3


def beat(world: World) -> None:
    """Note that this host is alive, and which back ends it serves."""
    host = world.settings.host
    parts = [(host, "cinder-scheduler"), *((f"{host}@{name}", "cinder-volume") for name in world.backends)]
    if world.backup_cluster is not None:
        parts.append((host, "cinder-backup"))
    # Another process of this host may be quicker with the first sign.
    with contextlib.suppress(exc.IntegrityError), world.db.write() as session:
        for name, binary in parts:
            row = session.scalar(
                select(models.Service).where(models.Service.host == name, models.Service.binary == binary)
            )
            if row is None:
                session.add(models.Service(host=name, binary=binary))
            else:
                row.updated_at = models.utcnow()


def listed(ctx: Context) -> Sequence[models.Service]:
    """Every host that ever gave a sign of life, with the parts that it plays, by name."""
    with ctx.world.db.read() as session:
        return session.scalars(select(models.Service).order_by(models.Service.host, models.Service.binary)).all()


def is_up(ctx: Context, service: models.Service) -> bool:
    """Whether the host has given a sign of life lately."""
    age = (models.utcnow() - service.updated_at).total_seconds()
    return age < ctx.settings.service_down_after


def pool(ctx: Context, backend: Backend) -> dict[str, Any]:
    """Capabilities of a pool, from Ceph's own figures; sizes in GiB."""
    capacity = backend.cluster.capacity()
    with ctx.world.db.read() as session:
        allocated = session.scalar(
            select(func.coalesce(func.sum(models.Volume.size), 0)).where(
                models.Volume.deleted.is_(False), models.Volume.host == backend.pool
            )
        )
    return {
        **capabilities.of(backend),
        "total_capacity_gb": round(capacity.total_bytes / GIB, 2),
        "free_capacity_gb": round(capacity.free_bytes / GIB, 2),
        "allocated_capacity_gb": int(allocated or 0),
        "provisioned_capacity_gb": round(capacity.provisioned_bytes / GIB, 2),
        "reserved_percentage": backend.reserved_percentage,
        "max_over_subscription_ratio": str(backend.max_over_subscription_ratio),
        "location_info": f"ceph:{backend.cluster.fsid()}:{backend.cluster.pool}",
        "backend_state": "up",
        "timestamp": models.utcnow().isoformat(),
    }
