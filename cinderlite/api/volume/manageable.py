# SPDX-License-Identifier: Apache-2.0
"""/manageable_volumes and /manageable_snapshots, and their older paths: take over what is in the pool already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, Body, Bool, Id, Metadata, Name, named, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.api.volume.snapshots import SnapshotWritten
from cinderlite.api.volume.volumes import VolumeWritten
from cinderlite.context import Backend, Context
from cinderlite.core import manage, snapshots, volumes
from cinderlite.core.manage import Candidate
from cinderlite.db import models

bp = Blueprint("manageable", SERVICE, "Images and snapshots that are in the pool already.")

#: Since when the lists hear of clusters.
CLUSTERS = Version(3, 17)
#: Takes those names out of a list that were asked for.
Page = Callable[[list[str]], list[str]]

_LIST_VOLUMES = "volume_extension:list_manageable"
_LIST_SNAPSHOTS = "snapshot_extension:list_manageable"


class VolumeManage(Body):
    """Which image is to become a volume."""

    envelope = "volume", ""

    host = fields.String(allow_none=True)
    cluster = versioned(fields.String(allow_none=True), since="3.16")
    ref = fields.Raw(required=True)
    name = Name()
    description = Name()
    volume_type = fields.String(allow_none=True)
    metadata = Metadata(allow_none=True)
    availability_zone = fields.String(allow_none=True)
    bootable = Bool()


class SnapshotManage(Body):
    """Which RBD snapshot is to become a snapshot."""

    envelope = "snapshot", ""

    volume_id = Id(required=True)
    ref = fields.Raw(required=True)
    name = Name()
    description = Name()
    metadata = Metadata(allow_none=True)


def _where(ctx: Context, given: Mapping[str, Any]) -> Backend:
    """The back end that a body or a query names by its host; there are no clusters here."""
    if bool(given.get("cluster")) == bool(given.get("host")):
        raise errors.InvalidInput("One and only one of cluster and host must be set.")
    if given.get("cluster"):
        raise errors.ServiceNotFound(given["cluster"])
    return manage.backend(ctx, given["host"])


_MANAGE_VOLUME = {
    "body": VolumeManage, "returns": (202, VolumeWritten), "policy": "volume_extension:volume_manage"
}  # fmt: skip
_MANAGE_SNAPSHOT = {
    "body": SnapshotManage, "returns": (202, SnapshotWritten), "policy": "snapshot_extension:snapshot_manage"
}  # fmt: skip


@bp.post("/manageable_volumes", since="3.8", **_MANAGE_VOLUME)
def manage_volume(ctx: Context, body: dict[str, Any]) -> models.Volume:
    """Make a volume of an image that is there; `ref` is {"source-name": the image's name}.

    The image is given the volume's name. One that is a volume already, or that somebody has open, is refused. One in a
    namespace of the pool is called NAMESPACE/IMAGE here, and stays there.
    """
    more = {key: body[key] for key in ("volume_type", "availability_zone", "bootable", "metadata") if body.get(key)}
    return manage.volume(ctx, _where(ctx, body), body["ref"], **more, **named(body))


@bp.post("/os-volume-manage", **_MANAGE_VOLUME)
def manage_volume_as_of_old(ctx: Context, body: dict[str, Any]) -> models.Volume:
    """Make a volume of an image that is there: the older path."""
    made: models.Volume = manage_volume(ctx, body)
    return made


@bp.post("/manageable_snapshots", since="3.8", **_MANAGE_SNAPSHOT)
def manage_snapshot(ctx: Context, body: dict[str, Any]) -> models.Snapshot:
    """Make a snapshot of an RBD snapshot of a volume's image; `ref` is {"source-name": the snapshot's name}."""
    volume = volumes.get(ctx, body["volume_id"])
    return manage.snapshot(ctx, volume, body["ref"], metadata=body.get("metadata"), **named(body))


@bp.post("/os-snapshot-manage", **_MANAGE_SNAPSHOT)
def manage_snapshot_as_of_old(ctx: Context, body: dict[str, Any]) -> models.Snapshot:
    """Make a snapshot of an RBD snapshot of a volume's image: the older path."""
    made: models.Snapshot = manage_snapshot(ctx, body)
    return made


# -- what there is


def _shown(candidate: Candidate, *, detail: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "reference": {manage.KEY: candidate.name},
        "size": candidate.size,
        "safe_to_manage": candidate.reason is None,
    }
    if candidate.image is not None:
        shown["source_reference"] = {manage.KEY: candidate.image}
    if detail:
        shown |= {"reason_not_safe": candidate.reason, "cinder_id": candidate.owner, "extra_info": None}
    return shown


def _order(query: Mapping[str, str]) -> tuple[str, bool]:
    """The key to sort by, and whether it goes down. Raises BadRequest."""
    key, _, direction = query.get("sort", "").partition(":")
    key = key or query.get("sort_key", "reference")
    direction = (direction or query.get("sort_dir", "desc")).lower()
    if key not in ("reference", "size") or direction not in ("asc", "desc"):
        raise errors.InvalidInput(f"Invalid sort '{key}:{direction}'; the keys are reference and size.")
    return key, direction == "desc"


def _slice(ctx: Context, query: Mapping[str, str], names: Sequence[str]) -> slice:
    """Which of the sorted names were asked for. Raises BadRequest for a marker that is not among them."""
    start = paging.number(query, "offset") or 0
    if query.get("marker"):
        try:
            name = manage.source(json.loads(query["marker"]))
            start += names.index(name) + 1
        except (ValueError, RecursionError) as error:
            raise errors.InvalidInput(f"marker not found: {query['marker'][:255]}") from error
    limit = paging.number(query, "limit") if "limit" in query else ctx.settings.max_page
    return slice(start, start + min(limit or 0, ctx.settings.max_page))


def _listed(
    ctx: Context,
    query: Mapping[str, str],
    found: Callable[[Backend, Callable[[list[str]], list[str]]], list[Candidate]],
) -> list[Candidate]:
    """One page: by name only what is on it is looked at, by size all of it has to be."""
    key, down = _order(query)
    where = _where(ctx, query if VIEW.get().version >= CLUSTERS else {**query, "cluster": ""})

    def page(names: list[str]) -> list[str]:
        ordered = sorted(names, reverse=down)
        return ordered[_slice(ctx, query, ordered)]

    if key == "reference":
        return found(where, page)
    by_size = sorted(found(where, list), key=lambda candidate: (candidate.size, candidate.name), reverse=down)
    return by_size[_slice(ctx, query, [candidate.name for candidate in by_size])]


def _volumes(ctx: Context, query: Mapping[str, str], *, detail: bool) -> dict[str, Any]:
    listed = _listed(
        ctx,
        query,
        lambda where, page: manage.volume_candidates(ctx, where, page(manage.names(where))),
    )
    return {"manageable-volumes": [_shown(candidate, detail=detail) for candidate in listed]}


def _snapshots(ctx: Context, query: Mapping[str, str], *, detail: bool) -> dict[str, Any]:
    def found(where: Backend, page: Page) -> list[Candidate]:
        candidates = manage.snapshot_candidates(ctx, where)
        chosen = page([candidate.name for candidate in candidates])
        return sorted(
            (candidate for candidate in candidates if candidate.name in chosen),
            key=lambda candidate: chosen.index(candidate.name),
        )

    return {"manageable-snapshots": [_shown(one, detail=detail) for one in _listed(ctx, query, found)]}


@bp.get("/manageable_volumes", policy=_LIST_VOLUMES, since="3.8", slow=True)
def list_volumes(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the images of a back end (`host`), those that could become volumes and those that are."""
    return _volumes(ctx, query, detail=False)


@bp.get("/manageable_volumes/detail", policy=_LIST_VOLUMES, since="3.8", slow=True)
def list_volumes_detail(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the images of a back end with what speaks against taking each over."""
    return _volumes(ctx, query, detail=True)


@bp.get("/os-volume-manage", policy=_LIST_VOLUMES, slow=True)
def list_volumes_as_of_old(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the images of a back end: the older path."""
    return _volumes(ctx, query, detail=False)


@bp.get("/os-volume-manage/detail", policy=_LIST_VOLUMES, slow=True)
def list_volumes_detail_as_of_old(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the images of a back end in detail: the older path."""
    return _volumes(ctx, query, detail=True)


@bp.get("/manageable_snapshots", policy=_LIST_SNAPSHOTS, since="3.8", slow=True)
def list_snapshots(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the RBD snapshots of the volumes on a back end (`host`)."""
    return _snapshots(ctx, query, detail=False)


@bp.get("/manageable_snapshots/detail", policy=_LIST_SNAPSHOTS, since="3.8", slow=True)
def list_snapshots_detail(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the RBD snapshots of the volumes on a back end with what speaks against taking each over."""
    return _snapshots(ctx, query, detail=True)


@bp.get("/os-snapshot-manage", policy=_LIST_SNAPSHOTS, slow=True)
def list_snapshots_as_of_old(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the RBD snapshots of the volumes on a back end: the older path."""
    return _snapshots(ctx, query, detail=False)


@bp.get("/os-snapshot-manage/detail", policy=_LIST_SNAPSHOTS, slow=True)
def list_snapshots_detail_as_of_old(ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the RBD snapshots of the volumes on a back end in detail: the older path."""
    return _snapshots(ctx, query, detail=True)


# -- letting go


@bp.action("/volumes/<id>/action", "os-unmanage", policy="volume_extension:volume_unmanage", on=volumes.get)
def unmanage_volume(ctx: Context, volume: models.Volume) -> None:
    """Forget a volume and leave its image."""
    manage.let_go(ctx, volume)


@bp.action("/snapshots/<id>/action", "os-unmanage", policy="snapshot_extension:snapshot_unmanage", on=snapshots.get)
def unmanage_snapshot(ctx: Context, snapshot: models.Snapshot) -> None:
    """Forget a snapshot and leave it in Ceph."""
    manage.let_go_snapshot(ctx, snapshot)
