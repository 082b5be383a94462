# SPDX-License-Identifier: Apache-2.0
"""Every answer of every operation, key by key, at the versions that clients speak; successes and faults.

The scenarios of the samples are played at each version; reads are repeated as a member of the project. What an operation
is to answer stands in `shapes`, those that do not exist yet too: a new one is held against it from its first scenario on.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import uuid
from typing import Any

import pytest

import cinder_api
import generate
import scenarios
from api import shapes
from cinderlite.api import volume
from cinderlite.api.microversion import Version
from cinderlite.context import World
from cinderlite.core import services
from conftest import Client

VERSIONS = ["3.0", "3.27", "3.44", "3.59", "3.67", "3.71"]
NEWEST = "3.71"


class Player:
    """Plays a scenario at a version as far as that has what is asked, else at the newest, and looks at every answer."""

    def __init__(self, admin: Client, member: Client, version: str) -> None:
        self.admin, self.member, self.version = admin, member, version
        self.seen: set[tuple[str, str, str | None]] = set()

    def call(self, method: str, path: str, body: Any = None, *, refused: int = 0) -> Any:
        """One request of a scenario."""
        if not path.startswith("/v3"):
            return self.admin.at("2.100").request(method, path, body).get_json(silent=True)
        answer, version = self.admin.at(self.version).request(method, path, body), self.version
        if answer.status_code >= 400 and not refused:
            answer, version = self.admin.at(NEWEST).request(method, path, body), NEWEST
            assert answer.status_code < 400, f"{method} {path}: {answer.text}"
        operation = method, cinder_api.normal(self.admin.rule.removeprefix("/v3")), _action(body)
        self.seen.add(operation)
        if answer.status_code < 400:
            self.look(operation, answer, version, admin=True)
        if method == "GET" and answer.status_code < 400:
            again = self.member.at(version).get(path)
            if again.status_code not in {403, 404}:
                self.look(operation, again, version, admin=False)
        return answer.get_json(silent=True)

    def look(self, operation: tuple[str, str, str | None], answer: Any, version: str, *, admin: bool) -> None:
        """Hold an answer against what it is to be."""
        shape = shapes.BY_OPERATION.get(operation) or shapes.BY_OPERATION.get((*operation[:2], None))
        if answer.mimetype == "text/plain" or (shape is None and not answer.data):
            return
        assert shape is not None, f"{operation} answers {answer.text}, and shapes has nothing of it"
        complaint = shape.complaint(answer.get_json(), Version.parse(version), admin=admin)
        who = "an administrator" if admin else "a member"
        assert complaint is None, f"{operation} at {version} for {who}: {complaint}"


def _action(body: Any) -> str | None:
    """The action that a body names, if it is one's."""
    names = {endpoint.action for endpoint in cinder_api.endpoints()}
    return next(iter(body)) if isinstance(body, dict) and len(body) == 1 and next(iter(body)) in names else None


@pytest.mark.usefixtures("glance")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(info.name for info in pkgutil.iter_modules(scenarios.__path__)))
def test_answers_have_exactly_their_keys(admin: Client, client: Client, world: World, name: str, version: str) -> None:
    services.beat(world)
    player = Player(admin, client, version)
    scenario = importlib.import_module(f"scenarios.{name}")
    scenario.play(player.call, world)
    for one in generate.operations(volume):
        key = one.method, cinder_api.normal(one.rule), one.action
        if f"volume/{one.name}" in scenario.OPERATIONS:
            assert key in player.seen


@pytest.mark.parametrize("version", VERSIONS)
def test_faults_have_exactly_their_keys(admin: Client, stranger: Client, version: str) -> None:
    unknown = str(uuid.UUID(int=0))
    for operation in generate.operations(volume):
        path = "/v3" + re.sub(r"<[^>]+>", unknown, operation.rule)
        body: Any = {operation.action: {}} if operation.action else {}
        for client in (admin, stranger):
            answer = client.at(version).request(operation.method, path, body)
            assert answer.status_code < 500, f"{operation.name}: {answer.text}"
            if Version.parse(version) not in operation.window:
                assert answer.status_code == 404, operation.name
            if answer.status_code < 400:
                continue
            [(fault, told)] = answer.json.items()
            names = {400: "badRequest", 403: "forbidden", 404: "itemNotFound", 409: "conflictingRequest"}
            assert (fault, set(told)) == (names[answer.status_code], {"code", "message"}), operation.name
            assert told["code"] == answer.status_code
            assert told["message"], operation.name
            assert answer.content_type == "application/json"
            assert answer.headers["OpenStack-API-Version"] == f"volume {version}"


def test_what_the_table_names_exists() -> None:
    assert shapes.BY_OPERATION.keys() <= {endpoint.key for endpoint in cinder_api.endpoints()}


@pytest.mark.parametrize(
    ("said", "version", "admin", "complaint"),
    [
        ({"g": {"a": 1, "b": 2, "c_at": None}}, "3.5", True, None),
        ({"g": {"a": 1, "b": 2}}, "3.5", False, "too many: ['b'], missing: []"),
        ({"g": {"a": 1, "d": 1}}, "3.4", False, "too many: ['d'], missing: []"),
        ({"g": {"a": 1, "d": 1, "c_at": "2026-01-31T12:00:00Z"}}, "3.5", False, "c_at is 2026-01-31T12:00:00Z"),
        ({"g": {}}, "3.4", False, "too many: [], missing: ['a']"),
        ({"g": {"a": 1}, "x": 1}, "3.4", False, "{'x'} beside g"),
        ({"h": {}}, "3.4", False, "there is no g"),
        ({"g": []}, "3.4", False, "g is list"),
    ],
)
def test_the_table_complains(said: Any, version: str, admin: bool, complaint: str | None) -> None:
    shape = shapes.Shape("g", several=False, keys=("a", "b@3.5!", "c_at?", "d@3.5?"))
    assert shape.complaint(said, Version.parse(version), admin=admin) == complaint
