# SPDX-License-Identifier: Apache-2.0
"""Servers, as far as somebody who attaches volumes needs them. The hypervisors know them; nothing is stored."""

from __future__ import annotations

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.guests import Flavor, Server

#: Statuses in which a disk can be plugged in now. A server that is shut off has no QEMU to plug it into.
ATTACHABLE = frozenset({"ACTIVE", "PAUSED"})


def visible(ctx: Context, *, all_projects: bool = False) -> list[Server]:
    """The caller's servers by name; an administrator asks for all projects explicitly."""
    everything = ctx.is_admin and all_projects
    found = [server for server in ctx.world.guests.servers() if everything or server.project_id == ctx.project_id]
    return sorted(found, key=lambda server: (server.created, server.id), reverse=True)


def get(ctx: Context, server_id: str) -> Server:
    """The server of that id as it is now. Raises ServerNotFound, also for another project's."""
    return _visible(ctx, server_id, fresh=True)


def owned(ctx: Context, server_id: str) -> Server:
    """The same with the status that was last seen: for what asks the VM itself anyway, or not at all."""
    return _visible(ctx, server_id, fresh=False)


def _visible(ctx: Context, server_id: str, *, fresh: bool) -> Server:
    server = ctx.world.guests.find(server_id, fresh=fresh).server
    if server.project_id != ctx.project_id and not ctx.is_admin:
        raise errors.ServerNotFound(server_id)
    return server


def flavors(ctx: Context) -> list[Flavor]:
    """The sizes that the caller's servers have."""
    found = {server.flavor.id: server.flavor for server in visible(ctx, all_projects=True)}
    return [found[key] for key in sorted(found)]


def flavor(ctx: Context, flavor_id: str) -> Flavor:
    """The size of that id. Raises FlavorNotFound."""
    for found in flavors(ctx):
        if found.id == flavor_id:
            return found
    raise errors.FlavorNotFound(flavor_id)
