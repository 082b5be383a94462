# SPDX-License-Identifier: Apache-2.0
"""/types: volume types, their extra specs, and which projects may use those that are not public."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields, validate
from sqlalchemy import ColumnElement, and_, exists, false, func, true

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import (
    VIEW,
    ActionBody,
    Bool,
    Computed,
    Label,
    Metadata,
    Name,
    PairBody,
    Schema,
    Specs,
    StrictBody,
    versioned,
)
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import types
from cinderlite.db import models

bp = Blueprint("types", SERVICE, "Volume types.")

#: The extra specs that say something to those who create volumes; the others are the operator's own business.
FOR_TENANTS = frozenset({"RESKEY:availability_zones", "multiattach", "replication_enabled"})
SENSITIVE = "volume_extension:types_extra_specs:read_sensitive"
ZONES = "RESKEY:availability_zones"


def _shown(kind: models.VolumeType) -> dict[str, str]:
    """The extra specs that the caller may see."""
    specs = types.extra_specs(kind)
    return specs if VIEW.get().allows(SENSITIVE) else {key: specs[key] for key in specs.keys() & FOR_TENANTS}


class VolumeTypeUpdated(Schema):
    """A volume type as its update answers it."""

    envelope = "volume_type", "volume_types"
    links_key = "volume_type_links"

    id = fields.String()
    name = fields.String()
    description = fields.String()
    is_public = fields.Boolean()
    extra_specs = versioned(Computed(_shown), policy="volume_extension:access_types_extra_specs")


class VolumeTypeCreated(VolumeTypeUpdated):
    """A volume type as its creation answers it."""

    access = versioned(
        fields.Boolean(attribute="is_public", data_key="os-volume-type-access:is_public"),
        policy="volume_extension:volume_type_access",
    )


class VolumeType(VolumeTypeCreated):
    """A volume type."""

    qos_specs_id = versioned(fields.String(), policy="volume_extension:access_types_qos_specs_id")


class TypeCreate(StrictBody):
    """What a type is called, whose it is, and what its volumes are to be like."""

    envelope = "volume_type", ""

    name = Label(required=True)
    description = Name()
    is_public = Bool(data_key="os-volume-type-access:is_public")
    extra_specs = Metadata(load_default=dict)


class TypeUpdate(StrictBody):
    """What is to change; null for what is not."""

    envelope = "volume_type", ""

    name = Label(allow_none=True)
    description = Name()
    is_public = Bool()


def _spec_filter(text: str) -> ColumnElement[bool]:
    """The types that have these extra specs; none if the caller may not see one of them."""
    rows = models.ExtraSpec
    wanted = paging.literal("extra_specs", text)
    if wanted.keys() - FOR_TENANTS and not VIEW.get().allows(SENSITIVE):
        return false()
    found = [
        exists().where(
            rows.volume_type_id == _T.id,
            rows.key == key,
            rows.value.contains(value, autoescape=True) if key == ZONES else rows.value == value,
        )
        for key, value in wanted.items()
    ]
    return and_(true(), *found)


_T = models.VolumeType
LISTING = Listing(
    id=_T.id,
    keys={
        "id": _T.id, "name": _T.name, "created_at": _T.created_at, "is_public": _T.is_public,
        "description": func.coalesce(_T.description, ""), "updated_at": func.coalesce(_T.updated_at, _T.created_at),
    },
    filters={
        "is_public": [filter_(lambda _text: true())],  # What the list begins with depends on it.
        "extra_specs": [filter_(_spec_filter, since="3.52")],
    },
    like={},
    not_found=errors.VolumeTypeNotFound,
    strict_since=Version(3, 52),
    resource="volume_type",
)  # fmt: skip


def is_public(query: Mapping[str, str]) -> bool | None:
    """Whether public types are asked for, as they are if nothing else is said; None for all. Raises BadRequest."""
    text = query.get("is_public", "true")
    return None if text.strip().lower() == "none" else paging.boolean("is_public", text)


@bp.get("/types", returns=(200, VolumeType), policy="volume_extension:type_get_all")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the volume types that the caller may use.

    Takes limit, marker, offset and sort, since 3.52 the filter `extra_specs`, and from administrators `is_public`,
    where `none` means all of them.
    """
    base = types.visible(ctx, public=is_public(query) if ctx.is_admin else None)
    return paging.page(ctx, LISTING, base, query, options=types.SHOWN)


@bp.post("/types", body=TypeCreate, returns=(200, VolumeTypeCreated), policy="volume_extension:type_create")
def create(ctx: Context, body: dict[str, Any]) -> models.VolumeType:
    """Create a volume type; 409 if one has that name already."""
    return types.create(ctx, **body)


@bp.get("/types/default", returns=(200, VolumeType), policy="volume_extension:type_get")
def show_default(ctx: Context) -> models.VolumeType:
    """Show the type of a volume that the project creates without one."""
    return types.default(ctx)


@bp.get("/types/<id>", returns=(200, VolumeType), policy="volume_extension:type_get", on=types.get)
def show(_ctx: Context, kind: models.VolumeType) -> models.VolumeType:
    """Show a volume type."""
    return kind


@bp.put(
    "/types/<id>",
    body=TypeUpdate,
    returns=(200, VolumeTypeUpdated),
    policy="volume_extension:type_update",
    on=types.get,
)
def update(ctx: Context, kind: models.VolumeType, body: dict[str, Any]) -> models.VolumeType:
    """Change a type's name, description or whether it is public; 409 if another one has that name already."""
    changes = {key: value for key, value in body.items() if value is not None}
    if not changes:
        raise errors.BadRequest("Specify volume type name, description, is_public or a combination thereof.")
    return types.update(ctx, kind, **changes)


@bp.delete("/types/<id>", returns=(202, None), policy="volume_extension:type_delete", on=types.get)
def delete(ctx: Context, kind: models.VolumeType) -> None:
    """Delete a type; 400 while a volume or group has it, or if it is the default one or that of a project."""
    types.delete(ctx, kind)


# -- extra specs


class ExtraSpecs(StrictBody):
    """Extra specs."""

    extra_specs = Specs(required=True)


@bp.get("/types/<id>/extra_specs", policy="volume_extension:types_extra_specs:index", on=types.get)
def show_extra_specs(_ctx: Context, kind: models.VolumeType) -> dict[str, Any]:
    """List a type's extra specs; who is no administrator sees those meant for tenants."""
    return {"extra_specs": _shown(kind)}


@bp.post("/types/<id>/extra_specs", body=ExtraSpecs, policy="volume_extension:types_extra_specs:create", on=types.get)
def add_extra_specs(ctx: Context, kind: models.VolumeType, body: dict[str, Any]) -> dict[str, Any]:
    """Add extra specs to a type, or replace some, and answer those that were sent; 400 while a volume has the type."""
    return {"extra_specs": types.set_extra_specs(ctx, kind, body["extra_specs"])}


@bp.get("/types/<id>/extra_specs/<key>", policy="volume_extension:types_extra_specs:show", on=types.get)
def show_extra_spec(_ctx: Context, kind: models.VolumeType, key: str) -> dict[str, Any]:
    """Show one of a type's extra specs."""
    specs = _shown(kind)
    if key not in specs:
        raise errors.ExtraSpecNotFound(kind.id, key)
    return {key: specs[key]}


@bp.put(
    "/types/<id>/extra_specs/<key>", body=PairBody, policy="volume_extension:types_extra_specs:update", on=types.get
)
def replace_extra_spec(ctx: Context, kind: models.VolumeType, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Set one of a type's extra specs; 400 while a volume has the type."""
    if list(body) != [key]:
        raise errors.BadRequest("Request body and URI mismatch")
    return types.set_extra_specs(ctx, kind, body)


@bp.delete(
    "/types/<id>/extra_specs/<key>",
    returns=(202, None),
    policy="volume_extension:types_extra_specs:delete",
    on=types.get,
)
def delete_extra_spec(ctx: Context, kind: models.VolumeType, key: str) -> None:
    """Remove one of a type's extra specs; 400 while a volume has the type."""
    types.delete_extra_spec(ctx, kind, key)


# -- access


class TypeAccess(Schema):
    """A project that may use a type."""

    envelope = "", "volume_type_access"

    volume_type_id = fields.String()
    project_id = fields.String()


class Project(ActionBody):
    """Which project."""

    project = fields.String(required=True, validate=validate.Length(min=1, max=255))


@bp.get(
    "/types/<id>/os-volume-type-access",
    returns=(200, TypeAccess),
    policy="volume_extension:volume_type_access:get_all_for_type",
    on=types.get,
)
def show_access(ctx: Context, kind: models.VolumeType) -> list[models.TypeAccess]:
    """List the projects that may use a type; 404 for a public one."""
    return types.projects(ctx, kind)


_ACTION = "/types/<id>/action"


@bp.action(
    _ACTION,
    "addProjectAccess",
    body=Project,
    policy="volume_extension:volume_type_access:addProjectAccess",
    on=types.get,
)
def add_access(ctx: Context, kind: models.VolumeType, body: dict[str, Any]) -> None:
    """Let a project use a type that is not public; 409 if it may already."""
    types.give(ctx, kind, body["project"])


@bp.action(
    _ACTION,
    "removeProjectAccess",
    body=Project,
    policy="volume_extension:volume_type_access:removeProjectAccess",
    on=types.get,
)
def remove_access(ctx: Context, kind: models.VolumeType, body: dict[str, Any]) -> None:
    """Let a project use a type no more; 404 if it may not anyway."""
    types.take(ctx, kind, body["project"])
