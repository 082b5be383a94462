# SPDX-License-Identifier: Apache-2.0
"""/volume-transfers and the older /os-volume-transfer: a volume goes to another project.

Both paths serve the same offers; what came with 3.55 and later (leaving the snapshots, paging, encrypted volumes) acts
on the newer one only. The key stands in the answer to the one who makes the offer, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow
from marshmallow import fields
from sqlalchemy import func

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.paging import Listing, boolean, filter_
from cinderlite.api.rest import Blueprint, Page
from cinderlite.api.schema import VIEW, Body, Bool, Id, Name, Schema, Time, links, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import transfers, volumes
from cinderlite.db import models

bp = Blueprint("transfers", SERVICE, "Transfers of volumes between projects.")

#: Since when the list is sorted and paged as others are.
PAGED = Version(3, 59)
#: Since when encrypted volumes are transferred.
ENCRYPTED = Version(3, 70)


class TransferRef(Schema):
    """A transfer in the short list, and as it was accepted."""

    envelope = "transfer", "transfers"
    links_key = "transfers_links"

    id = fields.String()
    volume_id = fields.String()
    name = fields.String()
    links = links("os-volume-transfer")


class Transfer(TransferRef):
    """A transfer in full."""

    created_at = Time()
    no_snapshots = versioned(fields.Boolean(), since="3.55")
    source_project_id = versioned(fields.String(), since="3.57")
    destination_project_id = versioned(fields.String(), since="3.57")
    accepted = versioned(fields.Boolean(), since="3.57")


class TransferMade(Transfer):
    """A transfer as the one who makes it sees it, once, with its key."""

    auth_key = fields.String()

    def write(self, row: Any) -> dict[str, Any]:
        """The transfer and its key."""
        transfer, key = row
        return Transfer.here().write(transfer) | {"auth_key": key}


class TransferCreateOfOld(Body):
    """Which volume is offered."""

    envelope = "transfer", ""
    strict_since = Version(3, 0)

    volume_id = Id(required=True)
    name = Name()


class TransferCreate(TransferCreateOfOld):
    """Which volume is offered, and whether its snapshots stay."""

    no_snapshots = versioned(Bool(), since="3.55")


class _Key(fields.String):
    """The key, which may be given as a number if it looks like one."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise marshmallow.ValidationError("it is not of type 'string', 'integer'")
        return super()._deserialize(str(value), attr, data, **kwargs)


class TransferAccept(Body):
    """The key that the one who made the offer passed on."""

    envelope = "accept", ""
    strict_since = Version(3, 0)

    auth_key = _Key(required=True)


_T = models.Transfer
LISTING = Listing(
    id=_T.id,
    keys={"id": _T.id, "created_at": _T.created_at, "volume_id": _T.volume_id,
          "name": func.coalesce(_T.name, ""), "display_name": func.coalesce(_T.name, "")},
    filters={
        "id": [filter_(lambda text: _T.id == text)],
        "volume_id": [filter_(lambda text: _T.volume_id == text)],
        "name": [filter_(lambda text: _T.name == text)],
        "display_name": [filter_(lambda text: _T.name == text)],
        "no_snapshots": [filter_(lambda text: _T.no_snapshots.is_(boolean("no_snapshots", text)))],
        "source_project_id": [filter_(lambda text: _T.source_project_id == text)],
        "destination_project_id": [filter_(lambda text: _T.destination_project_id == text)],
        "accepted": [filter_(lambda text: _T.accepted.is_(boolean("accepted", text)))],
        "project_id": [filter_(lambda text: _T.source_project_id == text, admin=True)],
    },
    like={},
    not_found=errors.TransferNotFound,
)  # fmt: skip


def _page(ctx: Context, query: Mapping[str, str], *, paged: bool) -> Page:
    """A page of the list; of old it is in the order of creation, whatever is asked."""
    if not paged:
        query = {key: text for key, text in query.items() if not key.startswith("sort")} | {"sort": "created_at:asc"}
    return paging.page(ctx, LISTING, transfers.visible(ctx, all_projects=paging.everybody(ctx, query)), query)


def _create(ctx: Context, body: Mapping[str, Any], *, encrypted: bool) -> tuple[models.Transfer, str]:
    return transfers.create(
        ctx,
        volumes.get(ctx, body["volume_id"]),
        name=body.get("name"),
        no_snapshots=body.get("no_snapshots", False),
        encrypted=encrypted,
    )


_LIST = "volume:get_all_transfers"
_CREATE = "volume:create_transfer"
_SHOW = {"returns": (200, Transfer), "policy": "volume:get_transfer", "on": transfers.get}
_DELETE = {"returns": (202, None), "policy": "volume:delete_transfer", "on": transfers.get}
_ACCEPT = {
    "body": TransferAccept, "returns": (202, TransferRef), "policy": "volume:accept_transfer", "on": transfers.offered
}  # fmt: skip


@bp.get("/volume-transfers", returns=(200, TransferRef), policy=_LIST)
def index(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the project's open transfers, before 3.59 always in the order of creation."""
    return _page(ctx, query, paged=VIEW.get().version >= PAGED)


@bp.get("/volume-transfers/detail", returns=(200, Transfer), policy=_LIST)
def detail(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the project's open transfers in full; takes what the short list takes."""
    return _page(ctx, query, paged=VIEW.get().version >= PAGED)


@bp.post("/volume-transfers", body=TransferCreate, returns=(202, TransferMade), policy=_CREATE)
def create(ctx: Context, body: dict[str, Any]) -> tuple[models.Transfer, str]:
    """Offer a volume to whoever will show the key in the answer, which is shown this once.

    Its snapshots go along, unless `no_snapshots` is set (since 3.55). Encrypted volumes are transferred since 3.70,
    with their snapshots. The volume must be available and becomes `awaiting-transfer`.
    """
    return _create(ctx, body, encrypted=VIEW.get().version >= ENCRYPTED)


@bp.get("/volume-transfers/<id>", **_SHOW)
def show(_ctx: Context, transfer: models.Transfer) -> models.Transfer:
    """Show a transfer of the project's."""
    return transfer


@bp.delete("/volume-transfers/<id>", **_DELETE)
def delete(ctx: Context, transfer: models.Transfer) -> None:
    """Take a transfer back; the volume is available again."""
    transfers.delete(ctx, transfer)


@bp.post("/volume-transfers/<id>/accept", **_ACCEPT)
def accept(ctx: Context, transfer: models.Transfer, body: dict[str, Any]) -> models.Transfer:
    """Take an offered volume over, from whatever project.

    A wrong key is a 400; 413 when the accepting project's quota does not allow the volume and its snapshots.
    """
    return transfers.accept(ctx, transfer, body["auth_key"])


# -- the older path


@bp.get("/os-volume-transfer", returns=(200, TransferRef), policy=_LIST)
def index_as_of_old(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the project's open transfers in the order of creation: the older path."""
    return _page(ctx, query, paged=False)


@bp.get("/os-volume-transfer/detail", returns=(200, Transfer), policy=_LIST)
def detail_as_of_old(ctx: Context, query: Mapping[str, str]) -> Page:
    """List the project's open transfers in full: the older path."""
    return _page(ctx, query, paged=False)


@bp.post("/os-volume-transfer", body=TransferCreateOfOld, returns=(202, TransferMade), policy=_CREATE)
def create_as_of_old(ctx: Context, body: dict[str, Any]) -> tuple[models.Transfer, str]:
    """Offer a volume with its snapshots; never an encrypted one: the older path."""
    return _create(ctx, body, encrypted=False)


@bp.get("/os-volume-transfer/<id>", **_SHOW)
def show_as_of_old(_ctx: Context, transfer: models.Transfer) -> models.Transfer:
    """Show a transfer of the project's: the older path."""
    return transfer


@bp.delete("/os-volume-transfer/<id>", **_DELETE)
def delete_as_of_old(ctx: Context, transfer: models.Transfer) -> None:
    """Take a transfer back: the older path."""
    transfers.delete(ctx, transfer)


@bp.post("/os-volume-transfer/<id>/accept", **_ACCEPT)
def accept_as_of_old(ctx: Context, transfer: models.Transfer, body: dict[str, Any]) -> models.Transfer:
    """Take an offered volume over: the older path."""
    return transfers.accept(ctx, transfer, body["auth_key"])
