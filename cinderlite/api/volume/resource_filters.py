# SPDX-License-Identifier: Apache-2.0
"""/resource_filters: by which keys each list can be filtered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context

bp = Blueprint("resource_filters", SERVICE, "Filters of lists.")


@bp.get("/resource_filters", policy=None, since="3.33")
def index(_ctx: Context, query: Mapping[str, str]) -> dict[str, Any]:
    """List the filters that members may use, of one `resource` or of all; the operator's file decides."""
    wanted = query.get("resource") or None
    keys = VIEW.get().filters.keys
    return {
        "resource_filters": [
            {"resource": name, "filters": list(listed)} for name, listed in keys.items() if wanted in (None, name)
        ]
    }
