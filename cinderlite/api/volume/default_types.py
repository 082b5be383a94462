# SPDX-License-Identifier: Apache-2.0
"""/default-types: which type volumes get that a project creates without naming one."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from cinderlite.api.projects import Project, named
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Label, Schema, StrictBody
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import default_types
from cinderlite.db import models

bp = Blueprint("default_types", SERVICE, "Default volume types of projects.")

SINCE = "3.62"


class DefaultType(Schema):
    """The default volume type of a project."""

    envelope = "default_type", "default_types"

    project_id = fields.String()
    volume_type_id = fields.String()


class DefaultTypeSet(StrictBody):
    """Which type, by name or id."""

    envelope = "default_type", ""

    volume_type = Label(required=True)


@bp.get("/default-types", returns=(200, DefaultType), policy="volume_extension:default_get_all", since=SINCE)
def index(ctx: Context) -> list[models.DefaultType]:
    """List the projects that have a default volume type of their own."""
    return list(default_types.every(ctx))


@bp.get("/default-types/<id>", returns=(200, DefaultType), policy="volume_extension:default_get", on=named, since=SINCE)
def show(ctx: Context, project: Project) -> models.DefaultType:
    """Show a project's default volume type; 404 if it has none of its own."""
    return default_types.get(ctx, project.project_id)


@bp.put(
    "/default-types/<id>",
    body=DefaultTypeSet,
    returns=(200, DefaultType),
    policy="volume_extension:default_set_or_update",
    on=named,
    since=SINCE,
)
def update(ctx: Context, project: Project, body: dict[str, Any]) -> models.DefaultType:
    """Give a project a default volume type of its own; 400 if there is no such type."""
    return default_types.put(ctx, project.project_id, body["volume_type"])


@bp.delete("/default-types/<id>", returns=(204, None), policy="volume_extension:default_unset", on=named, since=SINCE)
def delete(ctx: Context, project: Project) -> None:
    """Have the configured default volume type count for a project again."""
    default_types.remove(ctx, project.project_id)
