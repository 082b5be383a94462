# SPDX-License-Identifier: Apache-2.0
"""/workers: have interrupted work taken up now rather than at its turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Bool, Id, StrictBody
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import reconcile, services
from cinderlite.db import models

bp = Blueprint("workers", SERVICE, "Interrupted work.")

TYPES = {"Volume": models.Volume, "Snapshot": models.Snapshot}


class _ServiceId(fields.String):
    """A service's id; Cinder's are numbers, ours are not."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise marshmallow.ValidationError("it is not of type 'integer', 'string', 'null'")
        return super()._deserialize(str(value), attr, data, **kwargs)


class Cleanup(StrictBody):
    """Which services' work is meant, and which of it; all of it is optional."""

    cluster_name = fields.String(allow_none=True, validate=validate.Length(max=255))
    host = fields.String(allow_none=True, validate=validate.Length(max=255))
    binary = fields.String(validate=validate.OneOf((services.VOLUME, services.SCHEDULER)))
    service_id = _ServiceId(allow_none=True)
    is_up = Bool(load_default=False)
    disabled = Bool()
    resource_id = Id(allow_none=True)
    resource_type = fields.String(allow_none=True, validate=validate.Length(max=40))


def _named(ctx: Context, body: Mapping[str, Any]) -> list[models.Service]:
    """The services that a body names; one that is down if it does not say otherwise."""
    if body.get("cluster_name"):
        return []
    return [
        row
        for row in services.listed(ctx)
        if services.is_up(ctx, row) == body["is_up"]
        and body.get("disabled") in (None, row.disabled)
        and body.get("binary") in (None, row.binary)
        and (body.get("host") or row.host) in (row.host, row.host.partition("@")[0])
        and (body.get("service_id") or row.id) == row.id
    ]


@bp.post("/workers/cleanup", body=Cleanup, returns=(202, None), policy="workers:cleanup", since="3.24")
def cleanup(ctx: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Have the interrupted work of services taken up now, of those that are down if nothing else is said.

    The process that answers does it, whichever host began it, so none is ever `unavailable`. Work that waits for its
    next try is tried now; what a process on another host still has in hand is taken over when its lease ends.
    """
    kind = (body.get("resource_type") or "").title()
    if kind and kind not in TYPES:
        raise errors.InvalidInput(f"Resource type {kind} not valid, must be Snapshot or Volume")
    named = _named(ctx, body)
    if named:
        found = reconcile.hasten(ctx.world, TYPES.get(kind), body.get("resource_id"))
        located = body.keys() & {"service_id", "cluster_name", "host"}
        if body.get("resource_id") and not located and not found:
            raise errors.InvalidInput(f"There is no resource with UUID {body['resource_id']} pending cleanup.")
    cleaning = [{"id": row.id, "host": row.host, "binary": row.binary, "cluster_name": None} for row in named]
    return {"cleaning": cleaning, "unavailable": []}
