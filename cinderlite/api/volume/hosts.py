# SPDX-License-Identifier: Apache-2.0
"""/os-hosts: the parts of each host again, and what lies on its back ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Body, Computed, Schema, time_text
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import services

bp = Blueprint("hosts", SERVICE, "Hosts and what they hold.")

#: As project, the sum over all of them.
TOTAL = "(total)"


class Host(Schema):
    """A part of a host."""

    envelope = "host", "hosts"

    host_name = fields.String()
    service = fields.String()
    zone = fields.String()
    service_status = fields.String(data_key="service-status")
    service_state = fields.String(data_key="service-state")
    last_update = fields.String(data_key="last-update")


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    host_name: str
    service: str
    zone: str
    service_status: str
    service_state: str
    last_update: str | None


class Usage(Schema):
    """What a project has on a host; every number as text."""

    envelope = "host", "host"

    resource = Computed(lambda row: row)


class Switch(Body):
    """Whether the host's back ends get new volumes; the key may be in capitals."""

    status = fields.String()

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`on`. Raises BadRequest."""
        given = {}
        for key, text in body.items():
            if key.lower().strip() != "status":
                raise errors.BadRequest(f"Invalid update setting: '{key[:255]}'")
            word = text.lower().strip() if isinstance(text, str) else ""
            if word not in ("enable", "disable"):
                raise errors.BadRequest(f"Invalid status: '{str(text)[:255]}'")
            given["on"] = word == "enable"
        return given


_POLICY = "volume_extension:hosts"


@bp.get("/os-hosts", returns=(200, Host), policy=_POLICY)
def index(ctx: Context, query: Mapping[str, str]) -> list[_Row]:
    """List the parts of every host, of one `zone` if that is asked."""
    rows = [
        _Row(
            row.host,
            row.binary,
            services.zone(ctx, row),
            "available" if services.is_up(ctx, row) else "unavailable",
            "disabled" if row.disabled else "enabled",
            time_text(row.updated_at),
        )
        for row in services.listed(ctx)
    ]
    return [row for row in rows if query.get("zone", "") in ("", row.zone)]


@bp.get("/os-hosts/<host>", returns=(200, Usage), policy=_POLICY)
def show(ctx: Context, host: str) -> list[dict[str, str]]:
    """Show how many volumes and snapshots lie on a host's back ends and their GiB, in all and by project."""
    found = services.usage(ctx, host)
    sums = [sum(column) for column in zip((0, 0, 0, 0), *found.values(), strict=True)]
    return [_resource(host, project, row) for project, row in [(TOTAL, sums), *found.items()]]


def _resource(host: str, project: str, numbers: Any) -> dict[str, str]:
    keys = ("volume_count", "total_volume_gb", "snapshot_count", "total_snapshot_gb")
    return {"host": host, "project": project, **{key: str(one) for key, one in zip(keys, numbers, strict=True)}}


@bp.put("/os-hosts/<host>", body=Switch, policy=_POLICY)
def update(ctx: Context, host: str, body: dict[str, Any]) -> dict[str, Any]:
    """Enable or disable all parts of a host; the older way to do what /os-services does."""
    services.of_host(ctx, host)
    if not body:
        return {}
    services.switch(ctx, host, on=body["on"])
    return {"host": host, "status": "enabled" if body["on"] else "disabled"}
