# SPDX-License-Identifier: Apache-2.0
"""Calls every operation once and holds what it answers against the recorded sample, which the API reference shows.

What is called stands in `tests/scenarios`, a module a resource. `RECORD_SAMPLES=1` writes the samples instead
(`tox -e samples`). Ids, times and request ids are made the same each run.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import urllib.parse
from typing import Any

import pytest

import generate
import scenarios
from cinderlite.api import compute, volume
from cinderlite.context import World
from cinderlite.core import services
from conftest import Client

RECORD = bool(os.environ.get("RECORD_SAMPLES"))
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?")
_KEY = re.compile(r'"auth_key": "[0-9a-f]+"')
#: What QEMU calls what makes a volume's disk.
_NODE = re.compile(r"\b([rtlgspi])[a-z2-7]{26}([a-z2-7]{4})?\b")
#: What tells the cephx users of one database.
_DATABASE = re.compile(r"\bcinderlite\.[0-9a-f]{8}\.")
_RECORD = re.compile(r'"backup_url": "[0-9A-Za-z+/=]+"')


class Recorder:
    """Makes requests as an administrator and remembers each under the operation that answered it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ids: dict[str, str] = {}
        self.found: dict[str, dict[str, Any]] = {}

    def call(self, method: str, path: str, body: Any = None, *, refused: int = 0) -> Any:
        """One request at the newest version of its service, to be done or `refused`; its answer's JSON."""
        version = "3.71" if path.startswith("/v3") else "2.100"
        answer = self.client.at(version).request(method, path, body)
        assert answer.status_code == refused or answer.status_code < 400, f"{method} {path}: {answer.text}"
        self.found[self.client.operation] = self._sample(method, path, body, answer)
        return answer.get_json(silent=True)

    def _sample(self, method: str, path: str, body: Any, answer: Any) -> dict[str, Any]:
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
        # A record is an encoded text with ids and times in it.
        text = _RECORD.sub('"backup_url": "eyJhdmFpbGFiaWxpdHlfem9uZSI6ICJub3ZhIn0="', text)
        text = _NODE.sub(lambda found: found[1] + "aaaaaaaaaaaaaaaaaaaaaaaaaa" + ((found[2] and "bbbb") or ""), text)
        text = _DATABASE.sub("cinderlite.0123abcd.", text)
        text = _KEY.sub('"auth_key": "0123456789abcdef0123456789abcdef"', text)
        text = _TIME.sub(lambda match: "2026-01-31T12:00:00" + (".000000" if match[1] else ""), text)
        return json.loads(text)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("glance")
@pytest.mark.parametrize("name", sorted(info.name for info in pkgutil.iter_modules(scenarios.__path__)))
def test_a_resource_answers_as_its_samples_show(admin: Client, world: World, name: str) -> None:
    scenario = importlib.import_module(f"scenarios.{name}")
    pytest.importorskip(getattr(scenario, "NEEDS", "flask"))
    recorder = Recorder(admin)
    services.beat(world)
    scenario.play(recorder.call, world)
    for operation in scenario.OPERATIONS:
        path = generate.SAMPLES / f"{operation}.json"
        found = recorder.found[operation]
        if RECORD:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        assert found == json.loads(path.read_text(encoding="utf-8")), f"{operation}: run tox -e samples"


def test_every_operation_is_in_one_scenario() -> None:
    played = [
        operation
        for info in pkgutil.iter_modules(scenarios.__path__)
        for operation in importlib.import_module(f"scenarios.{info.name}").OPERATIONS
    ]
    declared = [
        f"{service.SERVICE.name}/{operation.name}"
        for service in (volume, compute)
        for operation in generate.operations(service)
    ]
    assert sorted(played) == sorted(declared)
