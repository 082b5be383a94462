# SPDX-License-Identifier: Apache-2.0
"""/qos-specs: limits for volumes, and which volume types have them.

What a newcomer gets wrong: three of the GETs change something; that is how Cinder declared them, and what clients send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields, validate
from sqlalchemy import select

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.paging import Listing, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import Computed, Label, Metadata, Schema, StrictBody, links
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import qos
from cinderlite.db import models

bp = Blueprint("qos", SERVICE, "QoS specs of volume types.")

_RULE = "volume_extension:qos_specs_manage:"
_LINKS = links("qos-specs")
_CONSUMERS = validate.OneOf(["back-end", "front-end", "both"])


class QosSpecs(Schema):
    """QoS specs: limits, and who is to keep them."""

    envelope = "qos_specs", "qos_specs"
    links_key = "qos_specs_links"

    id = fields.String()
    name = fields.String()
    consumer = fields.String()
    specs = Computed(qos.specs)


class QosUpdate(StrictBody):
    """Limits by name, and beside them under `consumer` who is to keep them: back-end, front-end or both."""

    envelope = "qos_specs", ""
    #: Keys that are no limits.
    words = frozenset({"consumer"})

    consumer = fields.String(validate=_CONSUMERS)
    specs = Metadata(required=True)

    def values(self, inner: Mapping[str, Any]) -> dict[str, Any]:
        """The limits under `specs`, apart from the rest. Raises BadRequest."""
        words = {key: inner[key] for key in self.words & inner.keys()}
        return super().values({**words, "specs": {key: inner[key] for key in inner.keys() - self.words}})


class QosCreate(QosUpdate):
    """A name, who is to keep the limits (`consumer`: back-end, front-end or both), and the limits by name."""

    words = frozenset({"consumer", "name"})

    name = Label(required=True)


def _different(keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        raise marshmallow.ValidationError("has non-unique elements")


class QosKeys(StrictBody):
    """Which limits."""

    keys = fields.List(fields.String(validate=validate.Length(min=1, max=255)), required=True, validate=_different)


_Q = models.QosSpecs
LISTING = Listing(
    id=_Q.id,
    keys={"id": _Q.id, "name": _Q.name, "consumer": _Q.consumer, "created_at": _Q.created_at},
    filters={
        "id": [filter_(lambda text: _Q.id == text)],
        "name": [filter_(lambda text: _Q.name == text)],
        "consumer": [filter_(lambda text: _Q.consumer == text)],
    },
    like={},
    not_found=errors.QosSpecsNotFound,
    strict_since=None,
)


def _whole(row: models.QosSpecs) -> dict[str, Any]:
    return {"qos_specs": QosSpecs.here().write(row), "links": _LINKS.compute(row)}


@bp.get("/qos-specs", returns=(200, QosSpecs), policy=_RULE + "get_all")
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List QoS specs. Takes limit, marker, offset, sort, and the filters `id`, `name` and `consumer`."""
    return paging.page(ctx, LISTING, select(models.QosSpecs), query, options=qos.SHOWN)


@bp.post("/qos-specs", body=QosCreate, policy=_RULE + "create")
def create(ctx: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Create QoS specs, for the back end if nothing is said; 409 if there are some of that name already."""
    return _whole(qos.create(ctx, body["name"], body.get("consumer", "back-end"), body["specs"]))


@bp.get("/qos-specs/<id>", policy=_RULE + "get", on=qos.get)
def show(_ctx: Context, row: models.QosSpecs) -> dict[str, Any]:
    """Show QoS specs."""
    return _whole(row)


@bp.put("/qos-specs/<id>", body=QosUpdate, policy=_RULE + "update", on=qos.get)
def update(ctx: Context, row: models.QosSpecs, body: dict[str, Any]) -> dict[str, Any]:
    """Add limits, replace some, or change who is to keep them, and answer what was sent."""
    limits = body.pop("specs")
    qos.update(ctx, row, limits, **body)
    return {"qos_specs": {**limits, **body}}


@bp.delete("/qos-specs/<id>", returns=(202, None), policy=_RULE + "delete", on=qos.get)
def delete(ctx: Context, row: models.QosSpecs, query: Mapping[str, str]) -> None:
    """Delete QoS specs; 400 while a type has them, except with `force=true`, which takes them from it."""
    qos.delete(ctx, row, force=paging.flag(query, "force"))


@bp.put("/qos-specs/<id>/delete_keys", body=QosKeys, returns=(202, None), policy=_RULE + "delete", on=qos.get)
def delete_keys(ctx: Context, row: models.QosSpecs, body: dict[str, Any]) -> None:
    """Remove limits; 404, and none is removed, if one of them is not there."""
    qos.remove(ctx, row, body["keys"])


# -- which types have them


@bp.get("/qos-specs/<id>/associations", policy=_RULE + "get_all", on=qos.get)
def show_associations(ctx: Context, row: models.QosSpecs) -> dict[str, Any]:
    """List the volume types that have QoS specs."""
    found = [
        {"association_type": "volume_type", "name": kind.name, "id": kind.id} for kind in qos.associations(ctx, row)
    ]
    return {"qos_associations": found}


def _type_id(query: Mapping[str, str]) -> str:
    if not query.get("vol_type_id"):
        raise errors.BadRequest("Volume Type id must not be None.")
    return query["vol_type_id"]


@bp.get("/qos-specs/<id>/associate", returns=(202, None), policy=_RULE + "update", on=qos.get)
def associate(ctx: Context, row: models.QosSpecs, query: Mapping[str, str]) -> None:
    """Give the volume type `vol_type_id` QoS specs; 400 if it has others."""
    qos.associate(ctx, row, _type_id(query))


@bp.get("/qos-specs/<id>/disassociate", returns=(202, None), policy=_RULE + "update", on=qos.get)
def disassociate(ctx: Context, row: models.QosSpecs, query: Mapping[str, str]) -> None:
    """Take QoS specs from the volume type `vol_type_id`."""
    qos.disassociate(ctx, row, _type_id(query))


@bp.get("/qos-specs/<id>/disassociate_all", returns=(202, None), policy=_RULE + "update", on=qos.get)
def disassociate_all(ctx: Context, row: models.QosSpecs) -> None:
    """Take QoS specs from all volume types."""
    qos.disassociate_all(ctx, row)
