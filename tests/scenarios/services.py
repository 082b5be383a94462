# SPDX-License-Identifier: Apache-2.0
"""What the service says of itself, and what administrators decide about it."""

from __future__ import annotations

import logging

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    f"volume/services.{name}"
    for name in (
        "index", "zones", "extensions", "extension", "enable", "disable", "disable_log_reason", "freeze", "thaw",
        "failover_host", "failover", "set_log", "get_log",
    )
]  # fmt: skip


def play(call: Call, world: World) -> None:
    del world
    for path in ("/os-services", "/os-availability-zone", "/extensions", "/extensions/os-availability-zone"):
        call("GET", f"/v3{path}")
    host = {"host": "testhost@ceph"}
    part = {**host, "binary": "cinder-volume"}
    call("PUT", "/v3/os-services/disable", part)
    call("PUT", "/v3/os-services/disable-log-reason", {**part, "disabled_reason": "new disks"})
    call("PUT", "/v3/os-services/enable", part)
    call("PUT", "/v3/os-services/freeze", host)
    call("PUT", "/v3/os-services/thaw", host)
    for name in ("failover_host", "failover"):
        call("PUT", f"/v3/os-services/{name}", {**host, "backend_id": "default"}, refused=400)
    logging.getLogger("scenario.services")
    logs = {"binary": "cinder-volume", "server": "testhost@ceph", "prefix": "scenario."}
    call("PUT", "/v3/os-services/set-log", {**logs, "level": "DEBUG"})
    call("PUT", "/v3/os-services/get-log", logs)
