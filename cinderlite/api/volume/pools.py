# SPDX-License-Identifier: Apache-2.0
"""/scheduler-stats and /capabilities: which pools there are, and what they can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import capabilities, pools, services

bp = Blueprint("pools", SERVICE, "Pools and what they can do.")

#: Extra specs that mean something to a back end → title and explanation. Each is true or false.
PROPERTIES = {
    "thin_provisioning_support": ("Thin provisioning", "Space is taken when data are written."),
    "multiattach": ("Attaching to several servers", "Volumes of types that allow it can be held by several servers."),
    "compression": ("Compression", "Whether data are compressed decides the pool, not the volume."),
    "qos": ("QoS", "Limits of QoS specs are kept by the hypervisor, by librbd, or by both."),
    "replication_enabled": ("Replication", "Images are mirrored to another cluster."),
}


#: Since when pools are filtered, and by volume type.
FILTERED, BY_TYPE = Version(3, 28), Version(3, 35)


@bp.get("/scheduler-stats/get_pools", policy="scheduler_extension:scheduler_stats:get_pools")
def get_pools(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the pools that take new volumes; with `detail=True` with their figures, which are Ceph's own.

    Since 3.28 they are filtered by `name` and other capabilities, since 3.31 only by what /resource_filters lists, for
    administrators too; since 3.35 by `volume_type`.
    """
    detail = paging.flag(query, "detail")
    wanted = _wanted(query)
    chosen = pools.visible(ctx, wanted, query.get("volume_type") if VIEW.get().version >= BY_TYPE else None)
    return {
        "pools": [
            {"name": backend.pool, **({"capabilities": pools.shown(ctx, backend)} if detail else {})}
            for backend in chosen
        ]
    }


def _wanted(query: Mapping[str, str]) -> dict[str, str]:
    """The capabilities that a query asks for. Raises BadRequest."""
    view = VIEW.get()
    wanted = {key: text for key, text in query.items() if key != "detail"}
    unknown = [key for key in wanted if not view.filters.allow("pool", key, like=False)]
    if unknown and view.version >= paging.STRICT_SINCE:
        raise errors.BadRequest(f"Invalid filters {', '.join(sorted(unknown))} are found in query options.")
    wanted.pop("volume_type", None)
    return wanted if view.version >= FILTERED else {}


@bp.get("/capabilities/<host>", policy="volume_extension:capabilities")
def show(ctx: Context, host: str) -> dict[str, Any]:
    """Show what a back end can do, and by which extra specs a type asks for it."""
    backend = services.backend_of(ctx, host)
    can = capabilities.of(backend)
    return {
        "namespace": f"OS::Storage::Capabilities::{backend.host}@{backend.name}",
        "vendor_name": can["vendor_name"],
        "volume_backend_name": backend.volume_backend_name,
        "pool_name": backend.cluster.pool,
        "driver_version": can["driver_version"],
        "storage_protocol": can["storage_protocol"],
        "display_name": f"Pool {backend.cluster.pool}",
        "description": f"RBD images in the pool {backend.cluster.pool} of a Ceph cluster.",
        "visibility": "public",
        "replication_targets": [],
        "properties": {
            key: {"title": title, "description": text, "type": "boolean"} for key, (title, text) in PROPERTIES.items()
        },
    }
