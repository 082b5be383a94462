# SPDX-License-Identifier: Apache-2.0
"""/limits and /os-quota-sets: what a project may have and what it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.rest import Answer, Blueprint
from cinderlite.api.schema import VIEW, Body
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import quotas
from cinderlite.core.types import usable as usable_types

bp = Blueprint("quotas", SERVICE, "Limits and quotas.")

#: Words of /limits → the resource's name.
ABSOLUTE = {
    "maxTotalVolumes": "volumes",
    "maxTotalVolumeGigabytes": "gigabytes",
    "maxTotalSnapshots": "snapshots",
    "maxTotalBackups": "backups",
    "maxTotalBackupGigabytes": "backup_gigabytes",
}
USED = {
    "totalVolumesUsed": "volumes",
    "totalGigabytesUsed": "gigabytes",
    "totalSnapshotsUsed": "snapshots",
    "totalBackupsUsed": "backups",
    "totalBackupGigabytesUsed": "backup_gigabytes",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Project:
    """The project that a path names, as the target of a policy."""

    project_id: str
    user_id: str


def named(ctx: Context, project_id: str) -> Project:
    """The project of a path."""
    return Project(project_id, ctx.user_id)


class QuotaSet(Body):
    """New limits; -1 for none."""

    envelope = "quota_set", ""
    limits = fields.Dict(keys=fields.String(), values=fields.Raw())

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Any keys: the rules know the resources' names. Raises BadRequest."""
        wanted = body.get("quota_set")
        if not isinstance(wanted, dict) or not set(wanted) - {"tenant_id"}:
            raise errors.BadRequest("Missing required element 'quota_set' in request body.")
        return {key: _limit(key, value) for key, value in wanted.items() if key not in ("tenant_id", "force")}


def _limit(key: str, value: Any) -> int:
    if isinstance(value, str) and value.lstrip("-").isdigit() and len(value) < 11:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 2**31 - 1:
        raise errors.BadRequest(f"Invalid input for field/attribute {key}. Value: {str(value)[:64]}. It must be an "
                                "integer from -1 to 2147483647")  # fmt: skip
    return value


def _with_types(ctx: Context, values: Mapping[str, Any], empty: Any) -> dict[str, Any]:
    """The values with the keys that clients expect for each volume type, which has no limits of its own here."""
    per_type = {
        f"{resource}_{kind.name}": empty
        for kind in usable_types(ctx)
        for resource in ("volumes", "gigabytes", "snapshots")
    }
    return {**values, **per_type}


@bp.get("/limits", policy="limits_extension:used_limits")
def limits(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """Show what the project may have and what it uses; administrators may name another one since 3.39."""
    project = ctx.project_id
    if ctx.is_admin and VIEW.get().version.minor >= 39:
        project = query.get("project_id", project)
    allowed, used = quotas.limits(ctx.world, project), quotas.usage(ctx.world, project)
    absolute = {key: allowed[resource] for key, resource in ABSOLUTE.items()}
    absolute |= {key: used[resource] for key, resource in USED.items()}
    return {"limits": {"rate": [], "absolute": absolute}}


@bp.get("/os-quota-sets/<id>", policy="volume_extension:quotas:show", on=named)
def show(ctx: Context, project: Project, query: Mapping[str, str]) -> dict[str, Any]:
    """Show a project's limits; with `usage=True` each with what is used of it."""
    values: dict[str, Any] = dict(quotas.limits(ctx.world, project.project_id))
    empty: Any = -1
    if paging.flag(query, "usage"):
        used = quotas.usage(ctx.world, project.project_id)
        values = {key: {"limit": limit, "in_use": used[key], "reserved": 0} for key, limit in values.items()}
        empty = {"limit": -1, "in_use": 0, "reserved": 0}
    return {"quota_set": {"id": project.project_id, **_with_types(ctx, values, empty)}}


@bp.get("/os-quota-sets/<id>/defaults", policy="volume_extension:quotas:show", on=named)
def defaults(ctx: Context, project: Project) -> dict[str, Any]:
    """Show the limits of a project that has none of its own."""
    return {"quota_set": {"id": project.project_id, **_with_types(ctx, quotas.defaults(ctx.settings), -1)}}


@bp.put("/os-quota-sets/<id>", body=QuotaSet, policy="volume_extension:quotas:update", on=named)
def update(ctx: Context, project: Project, body: dict[str, int]) -> dict[str, Any]:
    """Set limits of a project; none may be below what it uses already."""
    return {"quota_set": _with_types(ctx, quotas.update(ctx, project.project_id, body), -1)}


@bp.delete("/os-quota-sets/<id>", policy="volume_extension:quotas:delete", on=named)
def delete(ctx: Context, project: Project) -> Answer:
    """Give a project the default limits again."""
    quotas.reset(ctx, project.project_id)
    return Answer()
