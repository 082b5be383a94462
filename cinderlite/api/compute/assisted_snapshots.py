# SPDX-License-Identifier: Apache-2.0
"""/os-assisted-volume-snapshots: asked by Cinder's drivers that keep volumes in files, of which there are none here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.compute import SERVICE
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Body
from cinderlite.context import Context
from cinderlite.core import attachments

bp = Blueprint("assisted_snapshots", SERVICE, "Snapshots that servers take.")

_POLICY = "os_compute_api:os-assisted-volume-snapshots:"


class CreateInfo(marshmallow.Schema):
    """The snapshot's id, and the file that the server is to write to from then on."""

    snapshot_id = fields.String(required=True)
    type = fields.String(required=True, validate=validate.OneOf(("qcow2",)))
    new_file = fields.String(required=True)
    id = fields.String()


class Create(Body):
    """Of which volume a snapshot is to be taken."""

    envelope = "snapshot", ""
    strict_since = Version(2, 1)

    volume_id = fields.String(required=True)
    create_info = fields.Nested(CreateInfo, required=True, unknown=marshmallow.RAISE)


@bp.post("/os-assisted-volume-snapshots", body=Create, policy=_POLICY + "create")
def create(ctx: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Answer as Nova does for a volume that one server has, else 400. Nothing is done: Ceph takes snapshots itself."""
    attachments.refuse_unattached(ctx, body["volume_id"], one=True)
    return {"snapshot": {"id": body["create_info"].get("id"), "volumeId": body["volume_id"]}}


@bp.delete("/os-assisted-volume-snapshots/<id>", returns=(204, None), policy=_POLICY + "delete")
def delete(ctx: Context, id: str, query: Mapping[str, str]) -> None:  # noqa: A002 -- the path's name
    """Answer as Nova does for a volume that a server has, else 400; `delete_info` in the query is JSON that names it.

    Nothing is done.
    """
    del id
    paging.refuse_others(query, {"delete_info"})
    attachments.refuse_unattached(ctx, _named(query.get("delete_info", "")))


def _named(text: str) -> str:
    try:
        return str(json.loads(text)["volume_id"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise errors.BadRequest("delete_info must be JSON with a volume_id") from error
