# SPDX-License-Identifier: Apache-2.0
"""/clusters: there are none. Any process serves every volume, so nothing has to be clustered for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from cinderlite import errors
from cinderlite.api import paging
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, Label, Name, StrictBody
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context

bp = Blueprint("clusters", SERVICE, "Clusters of services, of which there are none.")

FILTERS = frozenset({"name", "binary", "is_up", "disabled", "num_hosts", "num_down_hosts"})
#: Filters that came with 3.26.
OF_REPLICATION = frozenset({"replication_status", "frozen", "active_backend_id"})
REPLICATION = Version(3, 26)


class _Cluster(StrictBody):
    """Which cluster is meant."""

    name = Label(required=True)
    binary = fields.String(allow_none=True)


class _ClusterWithReason(_Cluster):
    """Which cluster is disabled, and why."""

    disabled_reason = Name()


def _none(query: Mapping[str, str]) -> dict[str, Any]:
    allowed = FILTERS | (OF_REPLICATION if VIEW.get().version >= REPLICATION else frozenset())
    unknown = set(query) - allowed
    if unknown:
        raise errors.InvalidInput(f"Invalid filter keys: {', '.join(sorted(unknown))[:255]}")
    for key in ("is_up", "disabled"):
        paging.flag(query, key)
    return {"clusters": []}


@bp.get("/clusters", policy="clusters:get_all", since="3.7")
def index(_ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the clusters: none. Filters that Cinder does not know are refused."""
    return _none(query)


@bp.get("/clusters/detail", policy="clusters:get_all", since="3.7")
def detail(_ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the clusters in full: none."""
    return _none(query)


@bp.get("/clusters/<name>", policy="clusters:get", since="3.7")
def show(_ctx: Context, name: str) -> None:
    """Always 404: there is no cluster."""
    raise errors.ClusterNotFound(name)


@bp.put("/clusters/enable", body=_Cluster, policy="clusters:update", since="3.7")
def enable(_ctx: Context, body: dict[str, Any]) -> None:
    """Always 404: there is no cluster."""
    raise errors.ClusterNotFound(body["name"])


@bp.put("/clusters/disable", body=_ClusterWithReason, policy="clusters:update", since="3.7")
def disable(_ctx: Context, body: dict[str, Any]) -> None:
    """Always 404: there is no cluster."""
    raise errors.ClusterNotFound(body["name"])
