# SPDX-License-Identifier: Apache-2.0
"""/messages: why something that had been accepted did not work out."""

from __future__ import annotations

from collections.abc import Mapping

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Schema, Time, links
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import messages
from cinderlite.db import models

bp = Blueprint("messages", SERVICE, "User messages.")


#: Since when messages are filtered, sorted and paged.
PAGED = Version(3, 5)


class Message(Schema):
    """A user message."""

    envelope = "message", "messages"
    links_key = "messages_links"

    id = fields.String()
    event_id = fields.String()
    user_message = fields.String(attribute="text")
    message_level = fields.String(attribute="level")
    created_at = Time()
    guaranteed_until = Time(attribute="expires_at")
    request_id = fields.String()
    resource_type = fields.String()
    resource_uuid = fields.String()
    links = links("messages")


_M = models.Message
LISTING = Listing(
    id=_M.id,
    keys={
        "id": _M.id, "created_at": _M.created_at, "event_id": _M.event_id, "message_level": _M.level,
        "resource_type": _M.resource_type, "resource_uuid": _M.resource_uuid, "request_id": _M.request_id,
        "guaranteed_until": _M.expires_at, "expires_at": _M.expires_at,
    },
    filters={
        "resource_uuid": [filter_(lambda text: _M.resource_uuid == text)],
        "resource_type": [filter_(lambda text: _M.resource_type == text)],
        "event_id": [filter_(lambda text: _M.event_id == text)],
        "request_id": [filter_(lambda text: _M.request_id == text)],
        "message_level": [filter_(lambda text: _M.level == text)],
    },
    like={"resource_uuid": _M.resource_uuid, "resource_type": _M.resource_type, "event_id": _M.event_id,
          "request_id": _M.request_id, "message_level": _M.level},
    not_found=errors.MessageNotFound,
    resource="message",
)  # fmt: skip


@bp.get("/messages", returns=(200, Message), policy="message:get_all", since="3.3")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the project's messages, the newest first.

    Takes limit, marker, offset, sort and filters by field since 3.5, and `all_tenants` from administrators.
    """
    asked = query if VIEW.get().version >= PAGED else {}
    base = messages.visible(ctx, all_projects=paging.everybody(ctx, asked))
    return paging.page(ctx, LISTING, base, asked)


@bp.get("/messages/<id>", returns=(200, Message), policy="message:get", since="3.3", on=messages.get)
def show(_ctx: Context, message: models.Message) -> models.Message:
    """Show a message."""
    return message


@bp.delete("/messages/<id>", returns=(204, None), policy="message:delete", since="3.3", on=messages.get)
def delete(ctx: Context, message: models.Message) -> None:
    """Remove a message."""
    messages.delete(ctx, message)
