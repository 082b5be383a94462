# SPDX-License-Identifier: Apache-2.0
"""/servers/{id}/diagnostics: for an administrator, how many more disks a server takes.

Nova tells there what its hypervisor counts. This service counts nothing of a server but its disks: what it does not
know is null, as it is in Nova where a driver does not know it.
"""

from __future__ import annotations

from typing import Any

from cinderlite.api.compute import SERVICE
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW
from cinderlite.context import Context
from cinderlite.core import servers
from cinderlite.guests import Server

bp = Blueprint("diagnostics", SERVICE, "How servers are, for administrators.")

#: From there on Nova has one form for all hypervisors; before, each had its own.
ONE_FORM = Version(2, 48)
STATE = {"ACTIVE": "running", "PAUSED": "paused", "SHUTOFF": "shutdown", "SUSPENDED": "suspended"}
#: The key of ours, beside Nova's.
ROOM = "cinderlite:free_places"


@bp.get("/servers/<id>/diagnostics", policy="os_compute_api:os-server-diagnostics", on=servers.get)
def show(ctx: Context, server: Server) -> dict[str, Any]:
    """Show how many more disks can be plugged into a server, by bus; 409 if it does not run."""
    room = servers.room(ctx, server)
    if VIEW.get().version < ONE_FORM:
        return {ROOM: room}
    return {
        "state": STATE.get(server.status, "crashed"),
        "driver": None,
        "hypervisor": "qemu",
        "hypervisor_os": None,
        "uptime": None,
        "config_drive": None,
        "num_cpus": server.flavor.vcpus,
        "num_nics": None,
        "num_disks": None,
        "cpu_details": [],
        "nic_details": [],
        "disk_details": [],
        "memory_details": {"maximum": server.flavor.ram, "used": None},
        ROOM: room,
    }
