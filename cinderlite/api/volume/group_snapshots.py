# SPDX-License-Identifier: Apache-2.0
"""/group_snapshots: snapshots of all volumes of a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields
from sqlalchemy import func

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Id, Name, Schema, StrictBody, Time, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.api.volume.groups import ResetStatus
from cinderlite.context import Context
from cinderlite.core import group_snapshots, groups
from cinderlite.db import models

bp = Blueprint("group_snapshots", SERVICE, "Snapshots of groups of volumes.")

SINCE = "3.14"
#: Since when the lists are filtered, sorted and paged; before that they ignore the query.
PAGED = Version(3, 29)
PROJECT = "group:group_snapshot_project_attribute"


class GroupSnapshotRef(Schema):
    """A group snapshot in the short list."""

    envelope = "group_snapshot", "group_snapshots"
    links_key = "group_snapshot_links"

    id = fields.String()
    name = fields.String()


class GroupSnapshotWritten(GroupSnapshotRef):
    """A group snapshot in the answer of its creation."""

    group_type_id = fields.String()


class GroupSnapshot(GroupSnapshotWritten):
    """A group snapshot in full."""

    group_id = fields.String()
    status = fields.String()
    created_at = Time()
    description = fields.String()
    project_id = versioned(fields.String(), since="3.58", policy=PROJECT)


class GroupSnapshotCreate(StrictBody):
    """Of which group, and what it is called."""

    envelope = "group_snapshot", ""

    group_id = Id(required=True)
    name = Name()
    description = Name()


_S = models.GroupSnapshot
LISTING = Listing(
    id=_S.id,
    keys={
        "id": _S.id, "created_at": _S.created_at, "status": _S.status, "group_id": _S.group_id,
        "group_type_id": _S.group_type_id, "project_id": _S.project_id, "user_id": _S.user_id,
        "name": func.coalesce(_S.name, ""), "description": func.coalesce(_S.description, ""),
        "updated_at": func.coalesce(_S.updated_at, _S.created_at),
    },
    filters={
        "name": [filter_(lambda text: _S.name == text)],
        "status": [filter_(lambda text: _S.status == text)],
        "group_id": [filter_(lambda text: _S.group_id == text)],
    },
    like={"name": _S.name, "status": _S.status, "group_id": _S.group_id},
    not_found=errors.GroupSnapshotNotFound,
)  # fmt: skip


def _page(ctx: Context, query: Mapping[str, str]) -> Page:
    heard = query if VIEW.get().version >= PAGED else {}
    return paging.page(ctx, LISTING, group_snapshots.visible(ctx, all_projects=paging.everybody(ctx, heard)), heard)


@bp.get("/group_snapshots", returns=(200, GroupSnapshotRef), policy="group:get_all_group_snapshots", since=SINCE)
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List group snapshots: ids and names.

    Since 3.29 it takes limit, marker, offset, sort, `name`, `status`, `group_id`, and `all_tenants` from
    administrators.
    """
    return _page(ctx, query)


@bp.get("/group_snapshots/detail", returns=(200, GroupSnapshot), policy="group:get_all_group_snapshots", since=SINCE)
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List group snapshots in full; takes what the short list takes."""
    return _page(ctx, query)


@bp.get(
    "/group_snapshots/<id>",
    returns=(200, GroupSnapshot),
    policy="group:get_group_snapshot",
    on=group_snapshots.get,
    since=SINCE,
)
def show(_ctx: Context, row: models.GroupSnapshot) -> models.GroupSnapshot:
    """Show a group snapshot."""
    return row


@bp.post(
    "/group_snapshots",
    body=GroupSnapshotCreate,
    returns=(202, GroupSnapshotWritten),
    policy="group:create_group_snapshot",
    since=SINCE,
)
def create(ctx: Context, body: dict[str, Any]) -> models.GroupSnapshot:
    """Take a snapshot of every volume of a group, of those in use too; they are snapshots like others.

    If the group's type has `consistent_group_snapshot_enabled` = `<is> True`, all of them hold the same moment. A
    snapshot whose volume was written to just then is kept in a way that Ceph cannot clone: volumes are made from it by
    copying, in the background.
    """
    group = groups.get(ctx, body["group_id"])
    return group_snapshots.create(ctx, group, name=body.get("name"), description=body.get("description"))


@bp.delete(
    "/group_snapshots/<id>",
    returns=(202, None),
    policy="group:delete_group_snapshot",
    on=group_snapshots.get,
    since=SINCE,
)
def delete(ctx: Context, row: models.GroupSnapshot) -> None:
    """Delete a group snapshot with the snapshots that it consists of, none of which can be deleted alone.

    Volumes and groups that were made from it keep their data.
    """
    group_snapshots.delete(ctx, row)


@bp.action(
    "/group_snapshots/<id>/action",
    "reset_status",
    body=ResetStatus,
    policy="group:reset_group_snapshot_status",
    on=group_snapshots.get,
    since="3.19",
)
def reset_status(ctx: Context, row: models.GroupSnapshot, body: dict[str, Any]) -> None:
    """Set a group snapshot's status by hand."""
    group_snapshots.reset_status(ctx, row, body["status"])
