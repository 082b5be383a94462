# SPDX-License-Identifier: Apache-2.0
"""/consistencygroups: the API's older words for groups of one reserved type. Both never show each other's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Body, Bool, Computed, Name, Schema, Time
from cinderlite.api.volume import SERVICE
from cinderlite.api.volume import groups as api
from cinderlite.context import Context
from cinderlite.core import group_snapshots, group_types, groups
from cinderlite.db import models

bp = Blueprint("consistencygroups", SERVICE, "Consistency groups, which groups have taken the place of.")

#: Since when an update may make name or description empty.
EMPTY_NAMES = Version(3, 6)


class ConsistencyGroupRef(Schema):
    """A consistency group in the short list, and in the answer of a creation."""

    envelope = "consistencygroup", "consistencygroups"
    links_key = "consistencygroup_links"

    id = fields.String()
    name = fields.String()


class ConsistencyGroup(ConsistencyGroupRef):
    """A consistency group in full."""

    status = fields.String()
    availability_zone = fields.String()
    created_at = Time()
    description = fields.String()
    volume_types = Computed(lambda group: [row.volume_type_id for row in group.volume_type_rows])


class ConsistencyGroupCreate(Body):
    """Which volumes it takes: names or ids of volume types with commas between."""

    envelope = "consistencygroup", ""

    name = Name()
    description = Name()
    volume_types = fields.String(required=True)
    availability_zone = fields.String(allow_none=True)


class ConsistencyGroupFrom(Body):
    """What a consistency group is made from, and what it is called."""

    envelope = "consistencygroup-from-src", ""

    name = Name()
    description = Name()
    cgsnapshot_id = fields.String(allow_none=True)
    source_cgid = fields.String(allow_none=True)


class ConsistencyGroupUpdate(Body):
    """What is to change; volumes are ids with commas between."""

    envelope = "consistencygroup", ""

    name = Name()
    description = Name()
    add_volumes = fields.String(allow_none=True)
    remove_volumes = fields.String(allow_none=True)


class ConsistencyGroupDelete(Body):
    """Whether its volumes end with it; the whole body may be missing."""

    envelope = "consistencygroup", ""

    force = Bool()

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What is said, if anything is. Raises BadRequest."""
        return super().read(body) if body else {}


def _page(ctx: Context, query: Mapping[str, str]) -> Page:
    base = groups.visible(ctx, all_projects=paging.everybody(ctx, query), reserved=True)
    return paging.page(ctx, api.LISTING, base, query, options=groups.SHOWN)


@bp.get("/consistencygroups", returns=(200, ConsistencyGroupRef), policy="group:get_all")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List consistency groups: ids and names. Takes limit, marker, offset, sort and `name`."""
    return _page(ctx, query)


@bp.get("/consistencygroups/detail", returns=(200, ConsistencyGroup), policy="group:get_all")
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List consistency groups in full; takes what the short list takes."""
    return _page(ctx, query)


@bp.get("/consistencygroups/<id>", returns=(200, ConsistencyGroup), policy="group:get", on=groups.get_reserved)
def show(_ctx: Context, group: models.Group) -> models.Group:
    """Show a consistency group."""
    return group


@bp.post("/consistencygroups", body=ConsistencyGroupCreate, returns=(202, ConsistencyGroupRef), policy="group:create")
def create(ctx: Context, body: dict[str, Any]) -> models.Group:
    """Create a consistency group. Answers 413 when the project's quota of groups does not allow it."""
    wanted = api.listed(body.pop("volume_types"))
    if not wanted:
        raise errors.BadRequest("volume_types must be given for a consistency group.")
    return groups.create(ctx, group_type=group_types.RESERVED, volume_types=wanted, reserved=True, **body)


@bp.post(
    "/consistencygroups/create_from_src",
    body=ConsistencyGroupFrom,
    returns=(202, ConsistencyGroupRef),
    policy="group:create",
)
def create_from_source(ctx: Context, body: dict[str, Any]) -> models.Group:
    """Create a consistency group from a snapshot of one, or from one."""
    snapshot, source = body.pop("cgsnapshot_id", None), body.pop("source_cgid", None)
    if bool(snapshot) == bool(source):
        raise errors.BadRequest("Exactly one of cgsnapshot_id and source_cgid must be given.")
    return group_snapshots.create_group(
        ctx, group_snapshot_id=snapshot or None, source_group_id=source or None, reserved=True, **body
    )


@bp.post(
    "/consistencygroups/<id>/delete",
    body=ConsistencyGroupDelete,
    returns=(202, None),
    policy="group:delete",
    on=groups.get_reserved,
)
def delete(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Delete a consistency group, with `force` its volumes too; without it there must be none."""
    groups.delete(ctx, group, delete_volumes=body.get("force", False))


_UPDATE: dict[str, Any] = {
    "body": ConsistencyGroupUpdate,
    "returns": (202, None),
    "policy": "group:update",
    "on": groups.get_reserved,
}


@bp.put("/consistencygroups/<id>/update", **_UPDATE)
def update(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Change a consistency group's name or description, add volumes to it or remove some.

    Since 3.6 name and description may be made empty.
    """
    given = [value for value in body.values() if value is not None]
    if not given or (VIEW.get().version < EMPTY_NAMES and not any(given)):
        raise errors.BadRequest("Name, description, add_volumes and remove_volumes cannot all be empty.")
    groups.update(
        ctx,
        group,
        name=body.get("name"),
        description=body.get("description"),
        add=api.listed(body.get("add_volumes")),
        remove=api.listed(body.get("remove_volumes")),
    )


@bp.put("/consistencygroups/<id>", **_UPDATE)
def update_without_word(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Change a consistency group: the path that clients use, though Cinder's reference does not name it."""
    update(ctx, group, body)
