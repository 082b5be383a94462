# SPDX-License-Identifier: Apache-2.0
"""Signs of life of the API hosts, and the figures of the pool behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import exc, func, select

from cinderlite.context import Context, World
from cinderlite.db import models

GIB = 1024**3


def beat(world: World) -> None:
    """Note that this host is alive."""
    # Another process of this host may be quicker with the first sign.
    with contextlib.suppress(exc.IntegrityError), world.db.write() as session:
        row = session.scalar(select(models.Service).where(models.Service.host == world.settings.host))
        if row is None:
            session.add(models.Service(host=world.settings.host))
        else:
            row.updated_at = models.utcnow()


def listed(ctx: Context) -> Sequence[models.Service]:
    """Every host that ever gave a sign of life, by name."""
    with ctx.world.db.read() as session:
        return session.scalars(select(models.Service).order_by(models.Service.host)).all()


def is_up(ctx: Context, service: models.Service) -> bool:
    """Whether the host has given a sign of life lately."""
    age = (models.utcnow() - service.updated_at).total_seconds()
    return age < ctx.settings.service_down_after


def pool(ctx: Context) -> dict[str, Any]:
    """Capabilities of the pool, from Ceph's own figures; sizes in GiB."""
    settings = ctx.settings
    capacity = ctx.world.cluster.capacity()
    with ctx.world.db.read() as session:
        allocated = session.scalar(
            select(func.coalesce(func.sum(models.Volume.size), 0)).where(models.Volume.deleted.is_(False))
        )
    return {
        "volume_backend_name": settings.backend,
        "vendor_name": "Open Source",
        "driver_version": "1.0.0",
        "storage_protocol": "ceph",
        "total_capacity_gb": round(capacity.total_bytes / GIB, 2),
        "free_capacity_gb": round(capacity.free_bytes / GIB, 2),
        "allocated_capacity_gb": int(allocated or 0),
        "provisioned_capacity_gb": round(capacity.provisioned_bytes / GIB, 2),
        "reserved_percentage": settings.reserved_percentage,
        "max_over_subscription_ratio": str(settings.max_over_subscription_ratio),
        "thin_provisioning_support": True,
        "multiattach": False,
        "QoS_support": False,
        "location_info": f"ceph:{ctx.world.cluster.fsid()}:{ctx.world.cluster.pool}",
        "backend_state": "up",
        "replication_enabled": False,
        "timestamp": models.utcnow().isoformat(),
    }
