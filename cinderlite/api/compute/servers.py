# SPDX-License-Identifier: Apache-2.0
"""/servers, /flavors and what else clients read of a compute service before they attach a volume."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.compute import SERVICE
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Computed, Schema, links, versioned
from cinderlite.context import Context
from cinderlite.core import attachments, servers
from cinderlite.db import models
from cinderlite.guests import Flavor, Server

bp = Blueprint("servers", SERVICE, "Servers, as far as attaching volumes needs them.")

EXTENDED = "os_compute_api:os-extended-server-attributes"
POWER = {"ACTIVE": 1, "PAUSED": 3, "SHUTOFF": 4, "SUSPENDED": 4}


def _z(server: Server) -> str:
    """A time of Nova's form, with its Z (gophercloud needs that here)."""
    return server.created.strftime("%Y-%m-%dT%H:%M:%SZ")


class Shown:
    """A server with its attachments: what the schemas below write."""

    def __init__(self, server: Server, held: Sequence[models.Attachment] = ()) -> None:
        self.server = server
        self.id, self.name = server.id, server.name
        self.project_id, self.user_id = server.project_id, server.user_id
        self.held = [one for one in held if one.status in ("attached", "detaching")]


class ServerRef(Schema):
    """A server in the short list."""

    envelope = "server", "servers"
    links_key = "servers_links"

    id = fields.String()
    name = fields.String()
    links = links("servers")


def _flavor(flavor: Flavor) -> dict[str, Any]:
    return {
        "original_name": flavor.name,
        "vcpus": flavor.vcpus,
        "ram": flavor.ram,
        "disk": flavor.disk,
        "ephemeral": 0,
        "swap": 0,
        "extra_specs": {},
    }


def _flavor_link(flavor: Flavor) -> dict[str, Any]:
    view = VIEW.get()
    href = f"{view.base}{view.project}/flavors/{flavor.id}"
    return {"id": flavor.id, "links": [{"rel": "bookmark", "href": href}]}


def _volumes(shown: Shown) -> list[dict[str, Any]]:
    terminate = VIEW.get().version >= Version(2, 3)
    return [
        {"id": one.volume_id, **({"delete_on_termination": one.delete_on_termination} if terminate else {})}
        for one in shown.held
    ]


def _constant(value: Any, **kwargs: Any) -> Computed:
    return Computed(lambda _shown: value, **kwargs)


def _of(read: Callable[[Server], Any], **kwargs: Any) -> Computed:
    return Computed(lambda shown: read(shown.server), **kwargs)


class ServerShown(ServerRef):
    """A server in full, with Nova's keys; what this service does not know is empty, not missing."""

    status = _of(lambda server: server.status)
    tenant_id = fields.String(attribute="project_id")
    user_id = fields.String()
    hostId = _of(lambda server: server.host)  # noqa: N815 -- the API's name
    image = _constant("")
    flavor_link = versioned(_of(lambda server: _flavor_link(server.flavor), data_key="flavor"), until="2.46")
    flavor = versioned(_of(lambda server: _flavor(server.flavor)), since="2.47")
    created = _of(_z)
    updated = _of(_z)
    addresses = Computed(lambda _shown: {})
    accessIPv4 = _constant("")  # noqa: N815
    accessIPv6 = _constant("")  # noqa: N815
    config_drive = _constant("")
    key_name = _constant(None)
    metadata = _of(lambda server: dict(server.metadata))
    security_groups = Computed(lambda _shown: [])
    progress = _constant(0)
    disk_config = _constant("MANUAL", data_key="OS-DCF:diskConfig")
    zone = Computed(lambda _shown: "nova", data_key="OS-EXT-AZ:availability_zone")
    task_state = _constant(None, data_key="OS-EXT-STS:task_state")
    vm_state = _of(servers.vm_state, data_key="OS-EXT-STS:vm_state")
    power_state = _of(lambda server: POWER.get(server.status, 0), data_key="OS-EXT-STS:power_state")
    launched_at = _of(
        lambda server: server.created.replace(tzinfo=None).isoformat(timespec="microseconds"),
        data_key="OS-SRV-USG:launched_at",
    )
    terminated_at = _constant(None, data_key="OS-SRV-USG:terminated_at")
    volumes_attached = Computed(_volumes, data_key="os-extended-volumes:volumes_attached")
    host = versioned(_of(lambda server: server.host, data_key="OS-EXT-SRV-ATTR:host"), policy=EXTENDED)
    hypervisor = versioned(
        _of(lambda server: server.host, data_key="OS-EXT-SRV-ATTR:hypervisor_hostname"), policy=EXTENDED
    )
    instance_name = versioned(
        _of(lambda server: server.name, data_key="OS-EXT-SRV-ATTR:instance_name"), policy=EXTENDED
    )
    locked = versioned(_constant(False), since="2.9")
    host_status = versioned(_constant("UP"), since="2.16", policy=EXTENDED)
    description = versioned(_constant(None), since="2.19")
    tags = versioned(Computed(lambda _shown: []), since="2.26")
    trusted_image_certificates = versioned(_constant(None), since="2.63")
    locked_reason = versioned(_constant(None), since="2.73")
    pinned_availability_zone = versioned(_constant(None), since="2.96")
    scheduler_hints = versioned(Computed(lambda _shown: {}), since="2.100")


class ServerAlone(ServerShown):
    """One server, with what lists leave out."""

    server_groups = versioned(Computed(lambda _shown: []), since="2.71")


FILTERS: dict[str, Callable[[str], Callable[[Server], bool]]] = {
    "name": lambda text: _matching(text),  # noqa: PLW0108 -- defined below
    "status": lambda text: lambda server: server.status == text.upper(),
    "host": lambda text: lambda server: server.host == text,
    "flavor": lambda text: lambda server: server.flavor.id == text,
    "uuid": lambda text: lambda server: server.id == text,
    "user_id": lambda text: lambda server: server.user_id == text,
    # What this service's servers never have: none matches. Deleted servers are not listed at all.
    "image": lambda _text: lambda _server: False,
    "deleted": lambda text: lambda _server: not paging.boolean("deleted", text),
}
#: Query keys that Nova knows and that change nothing here.
IGNORED = frozenset(
    {"limit", "marker", "all_tenants", "project_id", "tenant_id", "sort_key", "sort_dir", "changes-since",
     "changes-before", "ip", "ip6", "reservation_id", "tags", "not-tags", "tags-any", "not-tags-any", "locked"}
)  # fmt: skip

#: A name's regular expression longer than this is refused: matching must stay cheap.
LONGEST_PATTERN = 255


def _matching(text: str) -> Callable[[Server], bool]:
    """A filter on names: Nova's is a regular expression. Only anchors and literal text are taken as such here.

    A tenant's expression run by Python's engine could hold a thread for minutes.
    """
    if len(text) > LONGEST_PATTERN:
        raise errors.InvalidInput("the name to look for is too long")
    begin, end = text.startswith("^"), text.endswith("$") and not text.endswith("\\$")
    core = text[begin : len(text) - end]
    core = re.sub(r"\\(.)", r"\1", core).removesuffix(".*").removeprefix(".*")

    def matches(server: Server) -> bool:
        if begin and end:
            return server.name == core
        if begin:
            return server.name.startswith(core)
        return server.name.endswith(core) if end else core in server.name

    return matches


def _listed(ctx: Context, query: Mapping[str, str]) -> tuple[list[Server], dict[str, str] | None]:
    """The page of servers that `query` asks for, and how to get the next."""
    everybody = paging.everybody(ctx, query)
    found = servers.visible(ctx, all_projects=everybody)
    project = query.get("project_id") or query.get("tenant_id")
    if everybody and project:
        found = [server for server in found if server.project_id == project]
    paging.refuse_others(query, FILTERS.keys() | IGNORED)
    for key in query.keys() & FILTERS.keys():
        keep = FILTERS[key](query[key])
        found = [server for server in found if keep(server)]
    if query.get("marker"):
        ids = [server.id for server in found]
        if query["marker"] not in ids:
            raise errors.BadRequest(f"marker [{query['marker'][:64]}] not found")
        found = found[ids.index(query["marker"]) + 1 :]
    limit = paging.number(query, "limit")
    most = ctx.settings.max_page if limit is None else min(limit, ctx.settings.max_page)
    page = found[:most]
    more = {"marker": page[-1].id, "limit": str(most)} if page and len(found) > most else None
    return page, more


@bp.get("/servers", returns=(200, ServerRef), policy="os_compute_api:servers:index")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List servers; filters name, status, host, flavor, and all_tenants and project_id from administrators."""
    found, more = _listed(ctx, query)
    return Page([Shown(server) for server in found], more)


@bp.get("/servers/detail", returns=(200, ServerShown), policy="os_compute_api:servers:detail")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List servers in full, with the volumes that each has."""
    found, more = _listed(ctx, query)
    held = attachments.of_servers(ctx, [server.id for server in found])
    return Page([Shown(server, held.get(server.id, ())) for server in found], more)


@bp.get("/servers/<id>", returns=(200, ServerAlone), policy="os_compute_api:servers:show", on=servers.get)
def show(ctx: Context, server: Server) -> Shown:
    """Show a server."""
    return Shown(server, attachments.of_server(ctx, server))


class FlavorRef(Schema):
    """A flavor in the short list."""

    envelope = "flavor", "flavors"

    id = fields.String()
    name = fields.String()
    links = links("flavors")
    description = versioned(_constant(None), since="2.55")


class FlavorShown(FlavorRef):
    """A flavor in full; sizes in MiB (ram) and GiB (disk)."""

    ram = fields.Integer()
    vcpus = fields.Integer()
    disk = fields.Integer()
    swap_text = versioned(_constant("", data_key="swap"), until="2.74")
    swap = versioned(_constant(0), since="2.75")
    ephemeral = _constant(0, data_key="OS-FLV-EXT-DATA:ephemeral")
    disabled = _constant(False, data_key="OS-FLV-DISABLED:disabled")
    public = _constant(True, data_key="os-flavor-access:is_public")
    rxtx_factor = _constant(1.0)
    extra_specs = versioned(Computed(lambda _flavor: {}), since="2.61")


@bp.get("/flavors", returns=(200, FlavorRef), policy="os_compute_api:os-flavor-access")
def flavors(ctx: Context) -> list[Flavor]:
    """List the sizes of the servers there are."""
    return servers.flavors(ctx)


@bp.get("/flavors/detail", returns=(200, FlavorShown), policy="os_compute_api:os-flavor-access")
def flavors_detail(ctx: Context) -> list[Flavor]:
    """List the sizes of the servers there are, in full."""
    return servers.flavors(ctx)


@bp.get("/flavors/<id>", returns=(200, FlavorShown), policy="os_compute_api:os-flavor-access", on=servers.flavor)
def flavor(_ctx: Context, flavor: Flavor) -> Flavor:
    """Show a size."""
    return flavor


@bp.get("/os-availability-zone", policy="os_compute_api:os-availability-zone:list")
def zones(_ctx: Context) -> dict[str, Any]:
    """List the availability zones."""
    return _zones()


def _zones() -> dict[str, Any]:
    return {"availabilityZoneInfo": [{"zoneName": "nova", "zoneState": {"available": True}, "hosts": None}]}


@bp.get("/os-availability-zone/detail", policy="os_compute_api:os-availability-zone:detail")
def zones_detail(_ctx: Context) -> dict[str, Any]:
    """List the availability zones, for administrators; hosts are not told."""
    return _zones()


@bp.get("/limits", policy="os_compute_api:limits")
def limits(ctx: Context) -> dict[str, Any]:
    """Show how much the project's servers use. Nothing is limited here: who starts servers does that."""
    found = servers.visible(ctx)
    unlimited = ("maxTotalInstances", "maxTotalCores", "maxTotalRAMSize", "maxServerMeta", "maxTotalKeypairs",
                 "maxServerGroups", "maxServerGroupMembers")  # fmt: skip
    absolute = dict.fromkeys(unlimited, -1) | {
        "totalInstancesUsed": len(found),
        "totalCoresUsed": sum(server.flavor.vcpus for server in found),
        "totalRAMUsed": sum(server.flavor.ram for server in found),
        "totalServerGroupsUsed": 0,
    }
    return {"limits": {"rate": [], "absolute": absolute}}


@bp.get("/extensions", policy=None)
def extensions(_ctx: Context) -> dict[str, Any]:
    """List what Nova calls extensions: none."""
    return {"extensions": []}
