# SPDX-License-Identifier: Apache-2.0
"""Calls every operation once and holds what it answers against the recorded sample, which the API reference shows.

`RECORD_SAMPLES=1` writes the samples instead (`tox -e samples`). Ids, times and request ids are made the same each run.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import urllib.parse
from typing import Any

import pytest

import generate
from cinderlite.api import compute, rest, volume
from cinderlite.context import World
from cinderlite.core import messages, services
from conftest import PROJECT, Client

RECORD = bool(os.environ.get("RECORD_SAMPLES"))
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?")


class Recorder:
    """Makes requests as an administrator and remembers each under the operation that answered it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ids: dict[str, str] = {}
        self.seen: dict[tuple[str, str], dict[str, Any]] = {}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request at the newest version of its service."""
        version = "3.71" if path.startswith("/v3") else "2.100"
        answer = self.client.at(version).request(method, path, body)
        assert answer.status_code < 400, f"{method} {path}: {answer.text}"
        return answer

    def sample(self, method: str, path: str, body: Any, answer: Any) -> dict[str, Any]:
        """A request and its answer, with everything that differs from run to run made the same."""
        said = answer.get_json(silent=True)
        raw = {
            "request": {"line": f"{method} {urllib.parse.unquote(path)}", "body": body},
            "response": {"line": answer.status, "body": said},
        }
        text = json.dumps(raw, ensure_ascii=False)
        text = _UUID.sub(
            lambda match: self.ids.setdefault(match[0], f"{len(self.ids):08x}-0000-4000-8000-000000000000"), text
        )
        text = _TIME.sub(lambda match: "2026-01-31T12:00:00" + (".000000" if match[1] else ""), text)
        return json.loads(text)  # type: ignore[no-any-return]


@pytest.fixture
def recorded(admin: Client, world: World) -> dict[str, dict[str, Any]]:
    """A sample of every operation, by service and name."""
    recorder = Recorder(admin)
    found: dict[str, dict[str, Any]] = {}
    app = admin.app
    services.beat(world)
    server = world.guests.add_server("vm1", PROJECT)  # type: ignore[attr-defined]

    def call(method: str, path: str, body: Any = None) -> Any:
        answer = recorder.call(method, path, body)
        adapter = app.url_map.bind("localhost")
        endpoint, _ = adapter.match(path.partition("?")[0], method)
        service = "volume" if path.startswith("/v3") else "compute"
        name = endpoint.removeprefix(f"{service}_").removesuffix("_of_project")
        found[f"{service}/{name}"] = recorder.sample(method, path, body, answer)
        return answer.get_json(silent=True)

    made = call("POST", "/v3/volumes", {"volume": {"size": 10, "name": "data", "metadata": {"purpose": "database"}}})
    one = f"/v3/volumes/{made['volume']['id']}"
    for path in ("/v3/volumes?limit=10", "/v3/volumes/detail?sort=name:asc", "/v3/volumes/summary", one):
        call("GET", path)
    call("PUT", one, {"volume": {"name": "database", "description": "of the shop"}})
    call("GET", one + "/metadata")
    call("POST", one + "/metadata", {"metadata": {"tier": "gold"}})
    call("PUT", one + "/metadata", {"metadata": {"purpose": "cache"}})
    call("GET", one + "/metadata/purpose")
    call("PUT", one + "/metadata/purpose", {"meta": {"purpose": "archive"}})
    call("DELETE", one + "/metadata/purpose")

    held = f"/v2.1/servers/{server.id}/os-volume_attachments"
    call("POST", held, {"volumeAttachment": {"volumeId": made["volume"]["id"], "delete_on_termination": True}})
    call("GET", held)
    call("GET", f"{held}/{made['volume']['id']}")
    call("GET", "/v3/attachments/detail")
    attachment = call("GET", "/v3/attachments")["attachments"][0]["id"]
    call("GET", f"/v3/attachments/{attachment}")
    for path in ("/servers", "/servers/detail", f"/servers/{server.id}", "/flavors", "/flavors/detail",
                 f"/flavors/{server.flavor.id}", "/os-availability-zone", "/os-availability-zone/detail", "/limits",
                 "/extensions"):  # fmt: skip
        call("GET", f"/v2.1{path}")
    call("DELETE", f"{held}/{made['volume']['id']}")

    kind = call("GET", "/v3/types")["volume_types"][0]["id"]
    for path in ("/types/default", f"/types/{kind}", "/limits", "/os-services", "/os-availability-zone",
                 "/scheduler-stats/get_pools?detail=True", "/extensions", "/extensions/os-availability-zone",
                 f"/os-quota-sets/{PROJECT}?usage=True", f"/os-quota-sets/{PROJECT}/defaults"):  # fmt: skip
        call("GET", f"/v3{path}")
    call("PUT", f"/v3/os-quota-sets/{PROJECT}", {"quota_set": {"volumes": 20}})
    call("DELETE", f"/v3/os-quota-sets/{PROJECT}")
    with world.db.write() as session:
        from cinderlite.db import models

        row = session.get_one(models.Volume, made["volume"]["id"])
        messages.leave(session, row, "detach", "The guest has not released the disk yet.", request_id="req-1")
    message = call("GET", "/v3/messages")["messages"][0]["id"]
    call("GET", f"/v3/messages/{message}")
    call("DELETE", f"/v3/messages/{message}")
    call("DELETE", one)
    return found


def _operations() -> list[tuple[str, Any, rest.Operation]]:
    return [
        (f"{service.SERVICE.name}/{operation.name}", service, operation)
        for service in (volume, compute)
        for operation in generate.operations(service)
    ]


def test_every_operation_answers_as_its_sample_shows(recorded: dict[str, dict[str, Any]]) -> None:
    assert {name for name, _, _ in _operations()} == set(recorded)
    for name, service, operation in _operations():
        path: pathlib.Path = generate.sample(service, operation)
        if RECORD:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(recorded[name], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        assert recorded[name] == json.loads(path.read_text(encoding="utf-8")), f"{name}: run tox -e samples"
