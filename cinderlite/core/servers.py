# SPDX-License-Identifier: Apache-2.0
"""Servers, as far as somebody who attaches volumes needs them. The hypervisors know them; nothing is stored."""

from __future__ import annotations

import dataclasses

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.guests import Flavor, Server


def visible(ctx: Context, *, all_projects: bool = False) -> list[Server]:
    """The caller's servers by name; an administrator asks for all projects explicitly."""
    everything = ctx.is_admin and all_projects
    found = [server for server in ctx.world.guests.servers() if everything or server.project_id == ctx.project_id]
    return sorted(found, key=lambda server: (server.created, server.id), reverse=True)


def of_project(ctx: Context, project_id: str) -> list[Server]:
    """The servers of a project."""
    return [server for server in ctx.world.guests.servers() if server.project_id == project_id]


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """A machine with servers; its state is "up" or "down"."""

    name: str
    state: str


def hosts(ctx: Context) -> list[Host]:
    """The machines with servers, by name; down is one none of whose servers can be asked."""
    states: dict[str, set[str]] = {}
    for server in ctx.world.guests.servers():
        states.setdefault(server.host, set()).add(server.status)
    return [Host(name, "down" if states[name] == {"ERROR"} else "up") for name in sorted(states)]


def get(ctx: Context, server_id: str) -> Server:
    """The server of that id as it is now. Raises ServerNotFound, also for another project's."""
    return _visible(ctx, server_id, fresh=True)


def owned(ctx: Context, server_id: str) -> Server:
    """The same with the status that was last seen: for what asks the VM itself anyway, or not at all."""
    return _visible(ctx, server_id, fresh=False)


def startable(ctx: Context, server_id: str) -> Server:
    """The server for one who starts it: services see every one, too. Raises ServerNotFound."""
    if ctx.is_service:
        return ctx.world.guests.find(server_id, fresh=False).server
    return owned(ctx, server_id)


def _visible(ctx: Context, server_id: str, *, fresh: bool) -> Server:
    server = ctx.world.guests.find(server_id, fresh=fresh).server
    if server.project_id != ctx.project_id and not ctx.is_admin:
        raise errors.ServerNotFound(server_id)
    return server


#: Nova's words for the state of a VM that is not what its status is called.
VM_STATE = {"SHUTOFF": "stopped"}


def vm_state(server: Server) -> str:
    """The state of a server's VM as Nova calls it."""
    return VM_STATE.get(server.status, server.status.lower())


def room(ctx: Context, server: Server) -> dict[str, int]:
    """How many more disks a server takes, by bus. Raises Conflict if it does not run, Unavailable."""
    refused = errors.Conflict(f"Cannot 'get_diagnostics' instance {server.id} while it is {server.status.lower()}")
    if server.status not in server.attachable:
        raise refused
    try:
        return dict(ctx.world.guests.find(server.id, fresh=False).room())
    except errors.GuestGone:
        raise refused from None


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
