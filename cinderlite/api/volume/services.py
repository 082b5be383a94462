# SPDX-License-Identifier: Apache-2.0
"""/os-services, /scheduler-stats, /os-availability-zone, /extensions: what the service says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, Computed, Schema, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import services

bp = Blueprint("services", SERVICE, "Services, pools and zones.")

#: What Cinder calls an extension and this service has; Horizon looks for the *name* AvailabilityZones.
EXTENSIONS = {
    "OS-SCH-HNT": "SchedulerHints",
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

    binary = Computed(lambda row: row["binary"])
    host = Computed(lambda row: row["host"])
    zone = Computed(lambda row: row["zone"])
    status = Computed(lambda _row: "enabled")
    state = Computed(lambda row: row["state"])
    updated_at = Computed(lambda row: row["updated_at"])
    disabled_reason = Computed(lambda _row: None)
    replication_status = Computed(lambda _row: "disabled")
    active_backend_id = Computed(lambda _row: None)
    frozen = Computed(lambda _row: False)
    cluster = versioned(Computed(lambda _row: None), since="3.7")
    backend_state = versioned(Computed(lambda row: row["state"]), since="3.49")

    VOLUME_ONLY = frozenset({"replication_status", "active_backend_id", "frozen", "backend_state"})

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Only a back end replicates and freezes."""
        written = super().write(row)
        if row["binary"] == "cinder-volume":
            return written
        return {key: value for key, value in written.items() if key not in self.VOLUME_ONLY}


@bp.get("/os-services", policy="volume_extension:services:index")
def index(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the API hosts as the Cinder services that each of them stands for; filters host and binary."""
    found = []
    for service in services.listed(ctx):
        state = "up" if services.is_up(ctx, service) else "down"
        for binary, host in (
            ("cinder-scheduler", service.host),
            ("cinder-volume", f"{service.host}@{ctx.settings.backend}"),
        ):
            row = {
                "binary": binary,
                "host": host,
                "zone": ctx.settings.availability_zone,
                "state": state,
                "updated_at": service.updated_at.isoformat(timespec="microseconds"),
            }
            if query.get("binary", binary) == binary and query.get("host", host) == host:
                found.append(row)
    schema = Service.here()
    return {"services": [schema.write(row) for row in found]}


@bp.get("/scheduler-stats/get_pools", policy="scheduler_extension:scheduler_stats:get_pools")
def pools(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the pools; with `detail=True` with their figures, which are Ceph's own."""
    pool: dict[str, Any] = {"name": ctx.settings.pool}
    if paging.flag(query, "detail"):
        pool["capabilities"] = services.pool(ctx)
    wanted = query.get("name", pool["name"]) if VIEW.get().version.minor >= 28 else pool["name"]
    return {"pools": [pool] if wanted == pool["name"] else []}


@bp.get("/os-availability-zone", policy=None)
def zones(ctx: Context) -> dict[str, Any]:
    """List the availability zones."""
    return {"availabilityZoneInfo": [{"zoneName": ctx.settings.availability_zone, "zoneState": {"available": True}}]}


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
