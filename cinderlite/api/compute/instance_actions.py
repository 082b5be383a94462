# SPDX-License-Identifier: Apache-2.0
"""/servers/{id}/os-instance-actions: what was done to a server's disks, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite.api import paging
from cinderlite.api.compute import SERVICE
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Computed, Schema, Time, time_text, versioned
from cinderlite.context import Context
from cinderlite.core import actions, servers
from cinderlite.db import models
from cinderlite.guests import Server

bp = Blueprint("instance_actions", SERVICE, "What was done to a server.")

_POLICY = "os_compute_api:os-instance-actions:"
_EVENTS = _POLICY + "events"
#: Since when a list comes in pages; before, whatever the query says is ignored.
PAGED_SINCE = Version(2, 58)


class ActionRef(Schema):
    """An action in a list."""

    envelope = "instanceAction", "instanceActions"
    links_key = "links"

    action = fields.String()
    instance_uuid = fields.String(attribute="server_id")
    request_id = fields.String()
    user_id = fields.String()
    project_id = fields.String()
    start_time = Time(attribute="started_at")
    message = Computed(lambda action: "Error" if action.reason else None)
    updated_at = versioned(Computed(lambda action: time_text(action.finished_at or action.started_at)), since="2.58")


class Event(Schema):
    """What became of an action; null where that is not known yet."""

    event = Computed(lambda action: f"compute_{action.action}")
    start_time = Time(attribute="started_at")
    finish_time = Time(attribute="finished_at")
    result = Computed(lambda action: None if action.finished_at is None else "Error" if action.reason else "Success")
    hostId = versioned(fields.String(attribute="host"), since="2.62")  # noqa: N815 -- the API's name
    traceback = versioned(Computed(lambda _action: None), policy=_EVENTS)
    host = versioned(fields.String(), since="2.62", policy=_EVENTS)
    details = versioned(fields.String(attribute="reason"), since="2.84")


def _events(action: models.ServerAction) -> list[dict[str, Any]]:
    return [Event.here().write(action)]


class Action(ActionRef):
    """An action with what became of it, which below 2.51 only administrators see."""

    told_to_some = versioned(Computed(_events, data_key="events"), until="2.50", policy=_EVENTS)
    events = versioned(Computed(_events), since="2.51")


PATH = "/servers/<server_id>/os-instance-actions"


@bp.get(PATH, returns=(200, ActionRef), policy=_POLICY + "list", on={"server_id": servers.owned})
def index(ctx: Context, server: Server, query: Mapping[str, str]) -> Page:
    """List what was done to a server's disks, the newest first; since 2.58 with limit and marker (a request's id)."""
    paging.refuse_others(query, {"limit", "marker", "changes-since", "changes-before"})
    asked = query if VIEW.get().version >= PAGED_SINCE else {}
    limit = paging.number(asked, "limit")
    most = ctx.settings.max_page if limit is None else min(limit, ctx.settings.max_page)
    found = actions.of_server(
        ctx,
        server,
        most=most + 1,
        after=asked.get("marker"),
        since=paging.moment(asked, "changes-since"),
        before=paging.moment(asked, "changes-before"),
    )
    page = found[:most]
    more = {"marker": page[-1].request_id, "limit": str(most)} if page and len(found) > most else None
    return Page(page, more)


@bp.get(PATH + "/<request_id>", returns=(200, Action), policy=_POLICY + "show", on={"server_id": servers.owned})
def show(ctx: Context, server: Server, request_id: str) -> models.ServerAction:
    """Show what a request did to a server's disks, and what became of it."""
    return actions.get(ctx, server, request_id)
