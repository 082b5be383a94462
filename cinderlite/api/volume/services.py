# SPDX-License-Identifier: Apache-2.0
"""/os-services, /scheduler-stats, /os-availability-zone, /extensions: what the service says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, Schema, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import placement, services
from cinderlite.db import models

bp = Blueprint("services", SERVICE, "Services, pools and zones.")

#: What Cinder calls an extension and this service has; Horizon looks for the *name* AvailabilityZones.
EXTENSIONS = {
    "OS-SCH-HNT": "SchedulerHints",
    "cgsnapshots": "Cgsnapshots",
    "consistencygroups": "Consistencygroups",
    "os-availability-zone": "AvailabilityZones",
    "os-extended-services": "ExtendedServices",
    "os-quota-sets": "Quotas",
    "os-services": "Services",
    "os-used-limits": "UsedLimits",
    "os-vol-host-attr": "VolumeHostAttribute",
    "os-vol-mig-status-attr": "VolumeMigStatusAttribute",
    "os-vol-tenant-attr": "VolumeTenantAttribute",
    "scheduler-stats": "Scheduler_stats",
}


class Service(Schema):
    """A service as Cinder lists them; one process here is what three of Cinder's are."""

    envelope = "service", "services"

    binary = fields.String()
    host = fields.String()
    zone = fields.String()
    status = fields.String()
    state = fields.String()
    updated_at = fields.String()
    disabled_reason = fields.String()
    replication_status = fields.String()
    active_backend_id = fields.String()
    frozen = fields.Boolean()
    cluster = versioned(fields.String(), since="3.7")
    backend_state = versioned(fields.String(), since="3.49")

    VOLUME_ONLY = frozenset({"replication_status", "active_backend_id", "frozen", "backend_state"})

    def write(self, row: Any) -> dict[str, Any]:
        """Only a back end replicates and freezes."""
        written = super().write(row)
        if row.binary == "cinder-volume":
            return written
        return {key: value for key, value in written.items() if key not in self.VOLUME_ONLY}


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    binary: str
    host: str
    zone: str
    status: str
    state: str
    updated_at: str
    disabled_reason: str | None
    frozen: bool
    backend_state: str
    replication_status: str = "disabled"
    active_backend_id: str | None = None
    cluster: str | None = None


def _row(ctx: Context, row: models.Service) -> _Row:
    state = "up" if services.is_up(ctx, row) else "down"
    backend = ctx.world.backends.get(row.host.partition("@")[2])
    return _Row(
        binary=row.binary,
        host=row.host,
        zone=backend.availability_zone if backend else ctx.settings.availability_zone,
        status="disabled" if row.disabled else "enabled",
        state=state,
        updated_at=row.updated_at.isoformat(timespec="microseconds"),
        disabled_reason=row.disabled_reason,
        frozen=row.frozen,
        backend_state=state,
    )


@bp.get("/os-services", returns=(200, Service), policy="volume_extension:services:index")
def index(ctx: Context, query: Mapping[str, str]) -> list[_Row]:
    """List the API hosts as the Cinder services that each of them stands for; filters host and binary.

    A host's name finds its back ends (host@backend), too.
    """
    rows = [_row(ctx, row) for row in services.listed(ctx)]
    return [
        row
        for row in rows
        if query.get("binary") in (None, row.binary)
        and query.get("host") in (None, row.host, row.host.partition("@")[0])
    ]


@bp.get("/scheduler-stats/get_pools", policy="scheduler_extension:scheduler_stats:get_pools")
def pools(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the pools; with `detail=True` with their figures, which are Ceph's own."""
    detail = paging.flag(query, "detail")
    wanted = query.get("name") if VIEW.get().version.minor >= 28 else None
    chosen = [backend for backend in ctx.world.backends.values() if wanted in (None, backend.pool)]
    return {
        "pools": [
            {"name": backend.pool, **({"capabilities": services.pool(ctx, backend)} if detail else {})}
            for backend in chosen
        ]
    }


@bp.get("/os-availability-zone", policy=None)
def zones(ctx: Context) -> dict[str, Any]:
    """List the availability zones."""
    found = [{"zoneName": name, "zoneState": {"available": True}} for name in placement.zones(ctx.world)]
    return {"availabilityZoneInfo": found}


def _extension(alias: str) -> dict[str, Any]:
    name = EXTENSIONS[alias]
    return {
        "alias": alias,
        "name": name,
        "description": f"{name}.",
        "updated": "2013-01-01T00:00:00+00:00",
        "links": [],
    }


@bp.get("/extensions", policy=None)
def extensions(_ctx: Context) -> dict[str, Any]:
    """List what Cinder calls extensions."""
    return {"extensions": [_extension(alias) for alias in EXTENSIONS]}


@bp.get("/extensions/<alias>", policy=None)
def extension(_ctx: Context, alias: str) -> dict[str, Any]:
    """Show one extension."""
    if alias not in EXTENSIONS:
        raise errors.NotFound(f"Extension with alias {alias} could not be found.")
    return {"extension": _extension(alias)}
