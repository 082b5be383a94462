# SPDX-License-Identifier: Apache-2.0
"""/servers/{id}/launch-arguments: for whoever starts VMs, what a server's QEMU is to be started with.

Nova has nothing like it, since it starts its servers itself. The answer opens the server's volumes: it is for services
and administrators only, and nobody may keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cinderlite import errors
from cinderlite.api.compute import SERVICE
from cinderlite.api.rest import Answer, Blueprint
from cinderlite.context import Context
from cinderlite.core import launches, servers
from cinderlite.guests import Server

bp = Blueprint("launches", SERVICE, "How servers are started with their volumes.")

KEYS = frozenset({"format", "boot", "bus", "directory"})


@bp.get("/servers/<id>/launch-arguments", policy="cinderlite:servers:launch", on=servers.startable)
def show(ctx: Context, server: Server, query: Mapping[str, str]) -> Answer:
    """Show what adds a server's volumes to QEMU's command line; with `format=libvirt` the XML of its disks.

    `boot` is the volume to boot from (else the first bootable one; `none` for none), `bus` names empty PCIe root ports
    and a virtio-scsi bus, with commas between them, `directory` is where the files of `secrets` will be, each with
    just that content and of mode 0600.
    """
    unknown = sorted(query.keys() - KEYS)
    if unknown:
        raise errors.BadRequest(f"Additional properties are not allowed ('{unknown[0][:64]}' was unexpected)")
    tell = {"qemu": _qemu, "libvirt": _libvirt}.get(query.get("format", "qemu"))
    if tell is None:
        raise errors.BadRequest("format must be 'qemu' or 'libvirt'")
    return Answer({"launch_arguments": tell(ctx, server, query)}, {"Cache-Control": "no-store"})


def _qemu(ctx: Context, server: Server, query: Mapping[str, str]) -> dict[str, Any]:
    buses = [bus for bus in query.get("bus", "").split(",") if bus]
    directory = query.get("directory", launches.DIRECTORY)
    return launches.told(launches.qemu(ctx.world, server, query.get("boot"), buses, directory))


def _libvirt(ctx: Context, server: Server, query: Mapping[str, str]) -> dict[str, Any]:
    return launches.told(launches.libvirt(ctx.world, server, query.get("boot")))
