# SPDX-License-Identifier: Apache-2.0
"""Whatever fits the documents, and much that does not, is answered as they say and never with a 5xx.

schemathesis makes the requests from the documents that the service serves; ids are often exchanged for ones of things
that are there, which the scenarios of the samples leave behind. FUZZ_EXAMPLES says how many requests an operation gets.
"""

from __future__ import annotations

import collections
import importlib
import itertools
import os
import pkgutil
import re
from typing import Any

import flask
import hypothesis
import pytest
from hypothesis import strategies

import scenarios
from api.test_samples import Recorder
from cinderlite.api import compute, volume
from cinderlite.context import World
from conftest import Client

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Pool = dict[str, list[str]]


class Seeder(Recorder):
    """Plays the scenarios without their deletions and remembers which ids stood behind which part of a path."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.pool: Pool = collections.defaultdict(list)

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """One request of a scenario; a deletion is left out."""
        if method == "DELETE":
            return {}
        answer = super().call(method, path, body, **more)
        parts = path.partition("?")[0].split("/")
        for name, part in itertools.pairwise(parts):
            if _ID.fullmatch(part):
                self.pool[name].append(part)
        return answer


@pytest.fixture
def pool(admin: Client, world: World) -> Pool:
    """Ids of things that are there, by the part of the path before them."""
    world.settings.quotas.update(dict.fromkeys(world.settings.quotas, -1))
    seeder = Seeder(admin)
    for info in pkgutil.iter_modules(scenarios.__path__):
        try:
            importlib.import_module(f"scenarios.{info.name}").play(seeder.call, world)
        except (AssertionError, KeyError, TypeError, IndexError):
            continue  # It needed a deletion: what it made so far is there.
    assert {"volumes", "servers", "snapshots"} <= seeder.pool.keys()
    return seeder.pool


def known(pool: Pool, choose: Any, value: Any, name: str = "") -> Any:
    """The value with ids of things that are there under the names that ask for them."""
    if isinstance(value, dict):
        return {key: known(pool, choose, inner, key) for key, inner in value.items()}
    ids = pool.get(re.sub(r"_?(uu)?id$", "", name.lower()) + "s")
    return choose(ids) if ids and isinstance(value, str) else value


def with_known_ids(data: strategies.DataObject, pool: Pool, case: Any) -> None:
    def choose(ids: list[str]) -> str:
        return data.draw(strategies.sampled_from(ids))

    before = {key: name for name, key in re.findall(r"/([^/{}]+)/{([^}]+)}", case.operation.path)}
    for key, name in before.items():
        if pool.get(name):
            case.path_parameters[key] = choose(pool[name])
    if isinstance(case.body, dict):
        case.body = known(pool, choose, case.body)


def _checks() -> list[Any]:
    """What an answer must be. Not among it: that what fits the document is accepted, for rules stand behind it."""
    from schemathesis.specs.openapi import checks

    return [
        schemathesis.checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_headers_conformance, checks.response_schema_conformance,
    ]  # fmt: skip


def _cases(operation: Any) -> Any:
    """Requests that fit the document and, where there is something to get wrong, such that do not."""
    modes = schemathesis.GenerationMode
    fitting = operation.as_strategy(generation_mode=modes.POSITIVE)
    wrong = operation.as_strategy(generation_mode=modes.NEGATIVE)
    return fitting | wrong if operation.body or operation.query else fitting


VERSIONS = [
    pytest.param(volume, "3.71", id="volume-3.71"),
    pytest.param(volume, "3.0", id="volume-3.0"),
    pytest.param(compute, "2.100", id="compute-2.100"),
]


@pytest.mark.parametrize(("service", "version"), VERSIONS)
def test_every_request_is_answered_as_described(
    application: flask.Flask, admin: Client, pool: Pool, service: Any, version: str
) -> None:
    path = f"{service.SERVICE.prefix}/openapi.json?microversion={version}"
    schema = schemathesis.openapi.from_wsgi(path, application)
    wanted = _checks()
    asked = admin.at(version).headers
    operations = [result.ok() for result in schema.get_all_operations()]
    # Deletions come last: the others are to find something.
    for operation in sorted(operations, key=lambda one: one.method.upper() == "DELETE"):

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize="FUZZ_EXAMPLES" not in os.environ,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=_cases(operation), data=strategies.data(), there=strategies.booleans())
        def ask(case: Any, data: strategies.DataObject, there: bool) -> None:
            if there:
                with_known_ids(data, pool, case)
            case.headers = asked  # What else a version's header may say is another test's business.
            answer = case.call()
            case.validate_response(answer, checks=wanted)

        ask()
