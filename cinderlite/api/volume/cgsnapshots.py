# SPDX-License-Identifier: Apache-2.0
"""/cgsnapshots: the API's older words for snapshots of consistency groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite.api import paging
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Body, Name, Schema, Time
from cinderlite.api.volume import SERVICE
from cinderlite.api.volume import group_snapshots as api
from cinderlite.context import Context
from cinderlite.core import group_snapshots, groups
from cinderlite.db import models

bp = Blueprint("cgsnapshots", SERVICE, "Snapshots of consistency groups.")


class CgSnapshotRef(Schema):
    """A snapshot of a consistency group in the short list, and in the answer of its creation."""

    envelope = "cgsnapshot", "cgsnapshots"

    id = fields.String()
    name = fields.String()


class CgSnapshot(CgSnapshotRef):
    """A snapshot of a consistency group in full."""

    consistencygroup_id = fields.String(attribute="group_id")
    status = fields.String()
    created_at = Time()
    description = fields.String()


class CgSnapshotCreate(Body):
    """Of which consistency group, and what it is called."""

    envelope = "cgsnapshot", ""

    consistencygroup_id = fields.String(required=True)
    name = Name()
    description = Name()


def _some(ctx: Context, query: Mapping[str, str]) -> list[models.GroupSnapshot]:
    """What `offset` and `limit` leave of them; these lists have no filters and no links."""
    heard = {key: query[key] for key in ("limit", "offset") if key in query}
    found = paging.page(ctx, api.LISTING, group_snapshots.visible(ctx, reserved=True), heard)
    return list(found.items)


@bp.get("/cgsnapshots", returns=(200, CgSnapshotRef), policy="group:get_all_group_snapshots")
def index(ctx: Context, query: Mapping[str, str]) -> list[models.GroupSnapshot]:
    """List snapshots of consistency groups: ids and names. Takes limit and offset."""
    return _some(ctx, query)


@bp.get("/cgsnapshots/detail", returns=(200, CgSnapshot), policy="group:get_all_group_snapshots")
def detail(ctx: Context, query: Mapping[str, str]) -> list[models.GroupSnapshot]:
    """List snapshots of consistency groups in full; takes what the short list takes."""
    return _some(ctx, query)


@bp.get(
    "/cgsnapshots/<id>",
    returns=(200, CgSnapshot),
    policy="group:get_group_snapshot",
    on=group_snapshots.get_reserved,
)
def show(_ctx: Context, row: models.GroupSnapshot) -> models.GroupSnapshot:
    """Show a snapshot of a consistency group."""
    return row


@bp.post("/cgsnapshots", body=CgSnapshotCreate, returns=(202, CgSnapshotRef), policy="group:create_group_snapshot")
def create(ctx: Context, body: dict[str, Any]) -> models.GroupSnapshot:
    """Take a snapshot of every volume of a consistency group, all at one moment."""
    group = groups.get_reserved(ctx, body["consistencygroup_id"])
    return group_snapshots.create(ctx, group, name=body.get("name"), description=body.get("description"))


@bp.delete(
    "/cgsnapshots/<id>", returns=(202, None), policy="group:delete_group_snapshot", on=group_snapshots.get_reserved
)
def delete(ctx: Context, row: models.GroupSnapshot) -> None:
    """Delete a snapshot of a consistency group with all that it consists of."""
    group_snapshots.delete(ctx, row)
