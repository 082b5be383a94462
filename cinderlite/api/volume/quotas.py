# SPDX-License-Identifier: Apache-2.0
"""/limits, /os-quota-sets and /os-quota-class-sets: what a project may have and what it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.projects import Project, named
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


class QuotaClassSet(Body):
    """New limits; -1 for none."""

    envelope = "quota_class_set", ""
    #: Keys that clients send beside them.
    ignored = frozenset[str]()

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Any keys: the rules know the resources' names. Raises BadRequest."""
        wanted = body.get(self.envelope[0])
        if not isinstance(wanted, dict):
            raise errors.BadRequest(f"Missing required element '{self.envelope[0]}' in request body.")
        return {key: _limit(key, value) for key, value in wanted.items() if key not in self.ignored}


class QuotaSet(QuotaClassSet):
    """New limits, or at least one of those keys; -1 for none."""

    envelope = "quota_set", ""
    ignored = frozenset({"tenant_id", "id"})

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Any keys: the rules know the resources' names. Raises BadRequest."""
        wanted = super().read(body)
        if not body["quota_set"]:
            raise errors.BadRequest("Missing required element 'quota_set' in request body.")
        return wanted


def _limit(key: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 2**31 - 1:
        raise errors.BadRequest(f"Invalid input for field/attribute {key}. Value: {str(value)[:64]}. It must be an "
                                "integer from -1 to 2147483647")  # fmt: skip
    return value


def _shown(ctx: Context, allowed: Mapping[str, int]) -> dict[str, int]:
    """The limits of every resource, also those for each type that the caller may use."""
    of_types = [name for kind in usable_types(ctx) for name in quotas.of_type(kind.name)]
    return {name: allowed.get(name, -1) for name in [*quotas.configured(ctx.settings), *of_types]}


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
    """Show a project's limits, also those for each volume type; with `usage=True` each with what is used of it."""
    values: dict[str, Any] = dict(_shown(ctx, quotas.limits(ctx.world, project.project_id)))
    if paging.flag(query, "usage"):
        used = quotas.usage(ctx.world, project.project_id)
        values = {key: {"limit": limit, "in_use": used.get(key, 0), "reserved": 0} for key, limit in values.items()}
    return {"quota_set": {"id": project.project_id, **values}}


@bp.get("/os-quota-sets/<id>/defaults", policy="volume_extension:quotas:show", on=named)
def defaults(ctx: Context, project: Project) -> dict[str, Any]:
    """Show the limits of a project that has none of its own."""
    values = _shown(ctx, quotas.of_class(ctx.world, quotas.DEFAULT_CLASS))
    return {"quota_set": {"id": project.project_id, **values}}


@bp.put("/os-quota-sets/<id>", body=QuotaSet, policy="volume_extension:quotas:update", on=named)
def update(ctx: Context, project: Project, body: dict[str, int]) -> dict[str, Any]:
    """Set limits of a project, for everything or for one volume type; none may be below what it uses already."""
    return {"quota_set": _shown(ctx, quotas.update(ctx, project.project_id, body))}


@bp.delete("/os-quota-sets/<id>", policy="volume_extension:quotas:delete", on=named)
def delete(ctx: Context, project: Project) -> Answer:
    """Give a project the default limits again."""
    quotas.reset(ctx, project.project_id)
    return Answer()


# -- classes


def _class_name(_ctx: Context, name: str) -> str:
    """The class of a path, whether it has limits of its own or not. Raises BadRequest."""
    if len(name) > 255:
        raise errors.BadRequest(f"quota_class_name has {len(name)} characters, more than 255.")
    return name


@bp.get("/os-quota-class-sets/<id>", policy="volume_extension:quota_classes:get", on=_class_name)
def show_class(ctx: Context, name: str) -> dict[str, Any]:
    """Show the limits of a class of projects; those of the class `default` count for every project."""
    return {"quota_class_set": {"id": name, **_shown(ctx, quotas.of_class(ctx.world, name))}}


@bp.put("/os-quota-class-sets/<id>", body=QuotaClassSet, policy="volume_extension:quota_classes:update", on=_class_name)
def update_class(ctx: Context, name: str, body: dict[str, int]) -> dict[str, Any]:
    """Set limits of a class of projects; those of the class `default` count where a project has none of its own."""
    return {"quota_class_set": _shown(ctx, quotas.update_class(ctx, name, body))}
