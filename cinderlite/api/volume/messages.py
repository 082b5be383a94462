# SPDX-License-Identifier: Apache-2.0
"""/messages: why something that had been accepted did not work out."""

from __future__ import annotations

from marshmallow import fields

from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import Schema, Time, links
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import messages
from cinderlite.db import models

bp = Blueprint("messages", SERVICE, "User messages.")


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


@bp.get("/messages", returns=(200, Message), policy="message:get_all", since="3.3")
def index(ctx: Context) -> list[models.Message]:
    """List the project's newest messages."""
    return messages.of_project(ctx)


@bp.get("/messages/<id>", returns=(200, Message), policy="message:get", since="3.3", on=messages.get)
def show(_ctx: Context, message: models.Message) -> models.Message:
    """Show a message."""
    return message


@bp.delete("/messages/<id>", returns=(204, None), policy="message:delete", since="3.3", on=messages.get)
def delete(ctx: Context, message: models.Message) -> None:
    """Remove a message."""
    messages.delete(ctx, message)
