# SPDX-License-Identifier: Apache-2.0
"""/group_types: the kinds of groups, which administrators make, and their specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields, validate
from sqlalchemy import ColumnElement, func, true
from sqlalchemy.orm import selectinload

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.paging import Listing, boolean, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import Bool, Computed, Label, Name, PairBody, Schema, Specs, StrictBody, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import group_types
from cinderlite.db import models

bp = Blueprint("group_types", SERVICE, "Group types: the kinds of groups, and their specs.")

SINCE = "3.11"


class GroupType(Schema):
    """A group type."""

    envelope = "group_type", "group_types"
    links_key = "group_type_links"

    id = fields.String()
    name = fields.String()
    description = fields.String()
    is_public = fields.Boolean()
    group_specs = versioned(Computed(group_types.specs), policy="group:access_group_types_specs")


class GroupSpecs(Specs):
    """Specs of which null is a value too."""

    _NULLS = True


class GroupTypeCreate(StrictBody):
    """What the type is called and what its groups can do."""

    envelope = "group_type", ""

    name = Label(required=True)
    description = Name()
    is_public = Bool()
    group_specs = GroupSpecs(allow_none=True)


class GroupTypeUpdate(StrictBody):
    """What is to change; null for what is not."""

    envelope = "group_type", ""

    name = Label(allow_none=True)
    description = Name()
    is_public = Bool()


class SpecsBody(StrictBody):
    """Specs to add or to change."""

    group_specs = GroupSpecs(required=True)


class SpecBody(PairBody):
    """One spec: its key and its value."""

    pair = GroupSpecs(required=True, validate=validate.Length(equal=1))


_T = models.GroupType


def _public(text: str) -> ColumnElement[bool]:
    return true() if text in ("None", "none", "null") else _T.is_public.is_(boolean("is_public", text))


LISTING = Listing(
    id=_T.id,
    keys={
        "id": _T.id, "name": _T.name, "created_at": _T.created_at, "is_public": _T.is_public,
        "description": func.coalesce(_T.description, ""), "updated_at": func.coalesce(_T.updated_at, _T.created_at),
    },
    filters={"is_public": [filter_(_public)]},
    like={},
    not_found=errors.GroupTypeNotFound,
)  # fmt: skip


@bp.get("/group_types", returns=(200, GroupType), policy=None, since=SINCE)
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the public group types; administrators ask for others, or for all, with `is_public`.

    Takes limit, marker, offset and sort.
    """
    heard = paging.RESERVED | ({"is_public"} if ctx.is_admin else set())
    wanted = {key: query[key] for key in query if key in heard}
    return paging.page(
        ctx, LISTING, group_types.visible(ctx), {"is_public": "True", **wanted}, options=[selectinload(_T.spec_rows)]
    )


@bp.get("/group_types/default", returns=(200, GroupType), policy=None, since=SINCE)
def show_default(ctx: Context) -> models.GroupType:
    """Show the group type that is configured as the default one (`default_group_type`)."""
    return group_types.default(ctx)


@bp.get("/group_types/<id>", returns=(200, GroupType), policy=None, on=group_types.get, since=SINCE)
def show(_ctx: Context, kind: models.GroupType) -> models.GroupType:
    """Show a group type."""
    return kind


@bp.post("/group_types", body=GroupTypeCreate, returns=(202, GroupType), policy="group:group_types:create", since=SINCE)
def create(ctx: Context, body: dict[str, Any]) -> models.GroupType:
    """Create a group type. Answers 409 if there is one of that name."""
    return group_types.create(ctx, **body)


@bp.put(
    "/group_types/<id>",
    body=GroupTypeUpdate,
    returns=(200, GroupType),
    policy="group:group_types:update",
    on=group_types.get,
    since=SINCE,
)
def update(ctx: Context, kind: models.GroupType, body: dict[str, Any]) -> models.GroupType:
    """Change a group type's name, description, or whether it is public."""
    if all(value is None for value in body.values()):
        raise errors.BadRequest("Specify group type name, description or a combination thereof.")
    return group_types.update(ctx, kind, **body)


@bp.delete("/group_types/<id>", returns=(202, None), policy="group:group_types:delete", on=group_types.get, since=SINCE)
def delete(ctx: Context, kind: models.GroupType) -> None:
    """Delete a group type, which no group may be of."""
    group_types.delete(ctx, kind)


_SPECS = "/group_types/<id>/group_specs"
_SPEC = "/group_types/<id>/group_specs/<key>"


@bp.get(_SPECS, policy="group:group_types_specs:get_all", on=group_types.get, since=SINCE)
def list_specs(_ctx: Context, kind: models.GroupType) -> dict[str, Any]:
    """List the specs of a group type."""
    return {"group_specs": group_types.specs(kind)}


@bp.post(
    _SPECS,
    body=SpecsBody,
    returns=(202, None),
    policy="group:group_types_specs:create",
    on=group_types.get,
    since=SINCE,
)
def create_specs(ctx: Context, kind: models.GroupType, body: dict[str, Any]) -> dict[str, Any]:
    """Add specs to a group type, or change those of the same keys."""
    group_types.set_specs(ctx, kind, body["group_specs"])
    return body


@bp.get(_SPEC, policy="group:group_types_specs:get", on=group_types.get, since=SINCE)
def show_spec(_ctx: Context, kind: models.GroupType, key: str) -> dict[str, Any]:
    """Show one spec of a group type."""
    found = group_types.specs(kind)
    if key not in found:
        raise errors.GroupTypeSpecNotFound(kind.id, key)
    return {key: found[key]}


@bp.put(_SPEC, body=SpecBody, policy="group:group_types_specs:update", on=group_types.get, since=SINCE)
def replace_spec(ctx: Context, kind: models.GroupType, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Set one spec of a group type."""
    if list(body) != [key]:
        raise errors.BadRequest("Request body and URI mismatch")
    group_types.set_specs(ctx, kind, body)
    return body


@bp.delete(_SPEC, returns=(202, None), policy="group:group_types_specs:delete", on=group_types.get, since=SINCE)
def delete_spec(ctx: Context, kind: models.GroupType, key: str) -> None:
    """Remove one spec of a group type."""
    group_types.delete_spec(ctx, kind, key)
