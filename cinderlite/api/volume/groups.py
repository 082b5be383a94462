# SPDX-License-Identifier: Apache-2.0
"""/groups: create, list, show, update, and the actions on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields, validate
from sqlalchemy import func
from sqlalchemy.orm import selectinload

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import ActionBody, Bool, Computed, Id, Name, Schema, StrictBody, Time, Word, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import group_snapshots, groups
from cinderlite.db import models

bp = Blueprint("groups", SERVICE, "Groups of volumes.")

SINCE = "3.13"
STATUSES = ("available", "creating", "deleted", "deleting", "error", "error_deleting", "updating")
PROJECT = "group:group_project_attribute"


def _volumes(group: models.Group) -> list[str] | None:
    """The ids of its volumes, if they were asked for."""
    return [volume.id for volume in group.volumes] if "volumes" in vars(group) else None


class GroupRef(Schema):
    """A group in the short list, and in the answer of a creation."""

    envelope = "group", "groups"
    links_key = "group_links"

    id = fields.String()
    name = fields.String()


class Group(GroupRef):
    """A group in full."""

    status = fields.String()
    availability_zone = fields.String()
    created_at = Time()
    description = fields.String()
    group_type = fields.String(attribute="group_type_id")
    volume_types = Computed(lambda group: [row.volume_type_id for row in group.volume_type_rows])
    group_snapshot_id = versioned(fields.String(), since="3.14")
    source_group_id = versioned(fields.String(), since="3.14")
    volumes = versioned(Computed(_volumes), since="3.25", optional=True)
    replication_status = versioned(Computed(lambda _group: "disabled"), since="3.38")
    project_id = versioned(fields.String(), since="3.58", policy=PROJECT)


class GroupCreate(StrictBody):
    """What kind of group, and which volumes it takes."""

    envelope = "group", ""

    name = Name()
    description = Name()
    group_type = fields.String(required=True, validate=validate.Length(1, 255))
    volume_types = fields.List(fields.String(validate=validate.Length(max=255)), required=True,
                               validate=validate.Length(min=1))  # fmt: skip
    availability_zone = fields.String(allow_none=True, validate=validate.Length(1, 255))


class GroupUpdate(StrictBody):
    """What is to change; volumes are ids with commas between."""

    envelope = "group", ""

    name = Name()
    description = Name()
    add_volumes = fields.String(allow_none=True)
    remove_volumes = fields.String(allow_none=True)


_G = models.Group
LISTING = Listing(
    id=_G.id,
    keys={
        "id": _G.id, "created_at": _G.created_at, "status": _G.status, "host": _G.host, "project_id": _G.project_id,
        "user_id": _G.user_id, "availability_zone": _G.availability_zone, "group_type_id": _G.group_type_id,
        "name": func.coalesce(_G.name, ""), "description": func.coalesce(_G.description, ""),
        "updated_at": func.coalesce(_G.updated_at, _G.created_at),
    },
    filters={"name": [filter_(lambda text: _G.name == text)]},
    like={"name": _G.name},
    not_found=errors.GroupNotFound,
    resource="group",
)  # fmt: skip


def _page(ctx: Context, query: Mapping[str, str]) -> Page:
    listed = [selectinload(_G.volumes)] if _with_volumes(query) else []
    return paging.page(
        ctx,
        LISTING,
        groups.visible(ctx, all_projects=paging.everybody(ctx, query)),
        {key: text for key, text in query.items() if key != "list_volume"},
        options=[*groups.SHOWN, *listed],
    )


def _with_volumes(query: Mapping[str, str]) -> bool:
    return paging.flag(query, "list_volume")


@bp.get("/groups", returns=(200, GroupRef), policy="group:get_all", since=SINCE)
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List groups: ids and names.

    Takes limit, marker, offset, sort, `name`, and `all_tenants` from administrators.
    """
    return _page(ctx, query)


@bp.get("/groups/detail", returns=(200, Group), policy="group:get_all", since=SINCE)
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List groups in full; since 3.25 with the ids of their volumes if `list_volume` is true."""
    return _page(ctx, query)


@bp.get("/groups/<id>", returns=(200, Group), policy="group:get", on=groups.get, since=SINCE)
def show(ctx: Context, group: models.Group, query: Mapping[str, str]) -> models.Group:
    """Show a group; since 3.25 with the ids of its volumes if `list_volume` is true."""
    return groups.with_volumes(ctx, group) if _with_volumes(query) else group


@bp.post("/groups", body=GroupCreate, returns=(202, GroupRef), policy="group:create", since=SINCE)
def create(ctx: Context, body: dict[str, Any]) -> models.Group:
    """Create a group of a group type that takes volumes of some volume types.

    Types are given by name or id. The group is on one back end, where all its volumes will be. Answers 413 when the
    project's quota does not allow it.
    """
    if len(set(body["volume_types"])) < len(body["volume_types"]):
        raise errors.BadRequest("Invalid input for field/attribute volume_types. Its items are not unique")
    return groups.create(ctx, **body)


class CreateFromSource(ActionBody):
    """What a group is made from, and what it is called."""

    name = Name()
    description = Name()
    group_snapshot_id = Id()
    source_group_id = Id()


@bp.action(
    "/groups/action",
    "create-from-src",
    body=CreateFromSource,
    returns=(202, GroupRef),
    policy="group:create",
    since="3.14",
)
def create_from_source(ctx: Context, body: dict[str, Any]) -> models.Group:
    """Create a group with a volume from each snapshot of a group snapshot, or from each volume of another group.

    It is of the same types and on the same back end. It is available when its volumes are.
    """
    if ("group_snapshot_id" in body) == ("source_group_id" in body):
        raise errors.BadRequest("Exactly one of group_snapshot_id and source_group_id must be given.")
    return group_snapshots.create_group(ctx, **body)


def listed(text: str | None) -> list[str]:
    """Ids with commas between."""
    return [one for one in dict.fromkeys((text or "").split(",")) if one]


@bp.put("/groups/<id>", body=GroupUpdate, returns=(202, None), policy="group:update", on=groups.get, since=SINCE)
def update(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Change a group's name or description, add volumes to it or remove some; they are not deleted by that.

    A volume that joins must be of one of the group's volume types, on its back end, and available or in use.
    """
    if not body:
        raise errors.BadRequest("Invalid input for field/attribute group. Value: {}. Nothing is to change")
    groups.update(
        ctx,
        group,
        name=body.get("name"),
        description=body.get("description"),
        add=listed(body.get("add_volumes")),
        remove=listed(body.get("remove_volumes")),
    )


# -- actions


class Delete(ActionBody):
    """Whether the group's volumes end with it."""

    delete_volumes = Bool(data_key="delete-volumes")


class ResetStatus(ActionBody):
    """The status to set."""

    status = Word(required=True, validate=validate.OneOf(STATUSES))


class Nothing(ActionBody):
    """An empty object."""


class Failover(ActionBody):
    """Where a group's replica is to take over."""

    allow_attached_volume = Bool()
    secondary_backend_id = fields.String(allow_none=True, validate=validate.Length(max=255))


_ACTION = "/groups/<id>/action"


@bp.action(_ACTION, "delete", body=Delete, policy="group:delete", on=groups.get, since=SINCE)
def delete(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Delete a group, with `delete-volumes` its volumes too; without it there must be none.

    It must have no group snapshots, and its volumes no snapshots and no attachments.
    """
    groups.delete(ctx, group, delete_volumes=body.get("delete_volumes", False))


@bp.action(_ACTION, "reset_status", body=ResetStatus, policy="group:reset_status", on=groups.get, since="3.20")
def reset_status(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Set a group's status by hand."""
    groups.reset_status(ctx, group, body["status"])


@bp.action(_ACTION, "enable_replication", body=Nothing, policy="group:enable_replication", on=groups.get, since="3.38")
def enable_replication(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Have a group replicated, which no back end can do: always refused."""
    del body
    groups.refuse_replication(ctx, group, "enable")


@bp.action(
    _ACTION, "disable_replication", body=Nothing, policy="group:disable_replication", on=groups.get, since="3.38"
)
def disable_replication(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Have a group not replicated any more; always refused, for none is."""
    del body
    groups.refuse_replication(ctx, group, "disable")


@bp.action(
    _ACTION, "failover_replication", body=Failover, policy="group:failover_replication", on=groups.get, since="3.38"
)
def failover_replication(ctx: Context, group: models.Group, body: dict[str, Any]) -> None:
    """Have a group's replica take over; always refused, for there is none."""
    del body
    groups.refuse_replication(ctx, group, "fail over")


@bp.action(
    _ACTION,
    "list_replication_targets",
    body=Nothing,
    returns=(200, None),
    policy="group:list_replication_targets",
    on=groups.get,
    since="3.38",
)
def list_replication_targets(ctx: Context, group: models.Group, body: dict[str, Any]) -> dict[str, Any]:
    """List where a group of a replicated type is replicated to: nowhere."""
    del body
    groups.check_replicated(ctx, group)
    return {"replication_targets": []}
