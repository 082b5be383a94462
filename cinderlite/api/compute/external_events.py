# SPDX-License-Identifier: Apache-2.0
"""/os-server-external-events: what Cinder and Neutron tell Nova, taken as Nova takes it."""

from __future__ import annotations

from typing import Any

import marshmallow
from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api.compute import SERVICE
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Answer, Blueprint
from cinderlite.api.schema import VIEW, Body, Id
from cinderlite.context import Context
from cinderlite.core import events

bp = Blueprint("external_events", SERVICE, "Events of other services.")

#: Name → since when it is one.
NAMES = {
    "network-changed": Version(2, 1),
    "network-vif-plugged": Version(2, 1),
    "network-vif-unplugged": Version(2, 1),
    "network-vif-deleted": Version(2, 1),
    "volume-extended": Version(2, 51),
    "power-update": Version(2, 76),
    "accelerator-request-bound": Version(2, 82),
    "volume-reimaged": Version(2, 93),
}


def _named(name: str) -> None:
    known = [one for one, since in NAMES.items() if since <= VIEW.get().version]
    if name not in known:
        raise marshmallow.ValidationError(f"'{name[:64]}' is not one of {known}")


class Event(marshmallow.Schema):
    """One event; `tag` says of which volume or port."""

    name = fields.String(required=True, validate=_named)
    server_uuid = Id(required=True)
    status = fields.String(validate=validate.OneOf(("failed", "completed", "in-progress")))
    tag = fields.String(validate=validate.Length(max=255))


class Events(Body):
    """Some events."""

    strict_since = Version(2, 1)

    events = fields.List(
        fields.Nested(Event, unknown=marshmallow.RAISE), required=True, validate=validate.Length(min=1)
    )


@bp.post("/os-server-external-events", body=Events, policy="os_compute_api:os-server-external-events:create")
def create(ctx: Context, body: dict[str, Any]) -> Answer:
    """Tell of events; each is answered with a code of its own: 207 when some were dropped, 404 when all were.

    volume-extended (since 2.51; power-update since 2.76, accelerator-request-bound since 2.82, volume-reimaged since
    2.93) has the server see the size that the volume's image has now. The others need nothing to be done.
    """
    codes = events.receive(ctx, body["events"])
    if 200 not in codes:
        raise errors.NotFound("No instances found for any event")
    told = [
        {**event, "status": "completed" if code == 200 else "failed", "code": code}
        for event, code in zip(body["events"], codes, strict=True)
    ]
    return Answer({"events": told}, status=200 if set(codes) == {200} else 207)
