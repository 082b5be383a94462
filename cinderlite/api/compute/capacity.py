# SPDX-License-Identifier: Apache-2.0
"""/os-quota-sets and /os-services of the compute service: what dashboards ask, answered from the servers there are.

Nothing is limited here: who starts servers does that.
"""

from __future__ import annotations

import uuid
from typing import Any

from marshmallow import fields

from cinderlite.api.compute import SERVICE
from cinderlite.api.projects import Project, named
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Computed, Schema, versioned
from cinderlite.context import Context
from cinderlite.core import servers

bp = Blueprint("capacity", SERVICE, "Quotas and hosts of servers.")

_QUOTAS = "os_compute_api:os-quota-sets:"
_PATH = "/os-quota-sets/<id>"


def _unlimited() -> Computed:
    return Computed(lambda _project: -1)


class QuotaSet(Schema):
    """What a project may have: as much as it likes of everything, which is written as -1."""

    envelope = "quota_set", ""

    id = fields.String(attribute="project_id")
    instances = _unlimited()
    cores = _unlimited()
    ram = _unlimited()
    metadata_items = _unlimited()
    key_pairs = _unlimited()
    server_groups = _unlimited()
    server_group_members = _unlimited()
    injected_files = versioned(_unlimited(), until="2.56")
    injected_file_content_bytes = versioned(_unlimited(), until="2.56")
    injected_file_path_bytes = versioned(_unlimited(), until="2.56")
    fixed_ips = versioned(_unlimited(), until="2.35")
    floating_ips = versioned(_unlimited(), until="2.35")
    security_groups = versioned(_unlimited(), until="2.35")
    security_group_rules = versioned(_unlimited(), until="2.35")


@bp.get(_PATH, returns=(200, QuotaSet), policy=_QUOTAS + "show", on=named)
def quotas(_ctx: Context, project: Project) -> Project:
    """Show the compute quotas of a project."""
    return project


@bp.get(f"{_PATH}/defaults", returns=(200, QuotaSet), policy=_QUOTAS + "defaults", on=named)
def default_quotas(_ctx: Context, project: Project) -> Project:
    """Show the compute quotas of a project that has none of its own."""
    return project


@bp.get(f"{_PATH}/detail", policy=_QUOTAS + "detail", on=named)
def quotas_in_detail(ctx: Context, project: Project) -> dict[str, Any]:
    """Show the compute quotas of a project, and what its servers use."""
    found = servers.of_project(ctx, project.project_id)
    used = {
        "instances": len(found),
        "cores": sum(server.flavor.vcpus for server in found),
        "ram": sum(server.flavor.ram for server in found),
    }
    told = {
        key: {"limit": value, "in_use": used.get(key, 0), "reserved": 0}
        for key, value in QuotaSet.here().write(project).items()
        if key != "id"
    }
    return {"quota_set": {"id": project.project_id, **told}}


def _uuid(host: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, host))


class Service(Schema):
    """A host of servers, as the compute service on it."""

    envelope = "", "services"

    number = versioned(Computed(lambda host: int(_uuid(host.name)[:7], 16), data_key="id"), until="2.52")
    id = versioned(Computed(lambda host: _uuid(host.name)), since="2.53")
    binary = Computed(lambda _host: "nova-compute")
    host = fields.String(attribute="name")
    zone = Computed(lambda _host: "nova")
    status = Computed(lambda _host: "enabled")
    state = fields.String()
    updated_at = Computed(lambda _host: None)
    disabled_reason = Computed(lambda _host: None)
    forced_down = versioned(Computed(lambda _host: False), since="2.11")


@bp.get("/os-services", returns=(200, Service), policy="os_compute_api:os-services:list")
def services(ctx: Context) -> list[servers.Host]:
    """List the hosts of servers; one of which no server can be asked is down."""
    return servers.hosts(ctx)
