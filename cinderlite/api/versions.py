# SPDX-License-Identifier: Apache-2.0
"""Version documents of both services and the health check: what is open without a login."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask

from cinderlite import errors
from cinderlite.api import compute, openapi, volume
from cinderlite.api.microversion import Service

SERVICES = (volume.SERVICE, compute.SERVICE)


def document(service: Service, base: str) -> dict[str, Any]:
    """One service's entry in a version document."""
    return {
        "id": service.version_id,
        "status": "CURRENT",
        "version": str(service.maximum),
        "min_version": str(service.minimum),
        "updated": service.updated,
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": f"{base}{service.prefix}/"},
        ],
        "media-types": [
            {
                "base": "application/json",
                "type": f"application/vnd.openstack.{service.type}+json;version={service.minimum.major}",
            }
        ],
    }


def register(app: flask.Flask, base_url: Callable[[flask.Request], str], check: Callable[[], dict[str, str]]) -> None:
    """Add the open paths to `app`; `check` asks Ceph and the database and says how each is."""

    def root() -> tuple[dict[str, Any], int]:
        # Cinder's clients take every version listed here for one of Block Storage.
        return block_storage(), 300

    def block_storage() -> dict[str, Any]:
        # Cinder answers a list here, unlike Nova.
        return {"versions": [document(volume.SERVICE, base_url(flask.request))]}

    def servers() -> dict[str, Any]:
        return {"version": document(compute.SERVICE, base_url(flask.request))}

    def health() -> tuple[dict[str, str], int]:
        found = check()
        well = all(word == "ok" for word in found.values())
        return {"status": "ok" if well else "unavailable", **found}, 200 if well else errors.Unavailable.status

    for rule, view in (
        ("/", root),
        ("/v3", block_storage),
        ("/v3/", block_storage),
        ("/v2.1", servers),
        ("/v2.1/", servers),
        ("/healthcheck", health),
    ):
        app.add_url_rule(rule, f"{view.__name__}:{rule}", view)


#: Paths that nobody needs to log in for.
OPEN = frozenset({"/", "/v3", "/v3/", "/v2.1", "/v2.1/", "/healthcheck", "/metrics"}) | {
    f"{service.prefix}/{path}" for service in SERVICES for path in openapi.PATHS
}
