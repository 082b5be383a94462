# SPDX-License-Identifier: Apache-2.0
"""The documents that describe the API: valid, whole, open, and true of every recorded sample."""

from __future__ import annotations

import json
import re
from typing import Any

import flask
import pytest

import generate
from cinderlite import app as composition
from cinderlite import errors
from cinderlite.api import compute, openapi, volume
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Operation
from conftest import Client

VERSIONS = [
    pytest.param(service, text, id=f"{service.SERVICE.name}-{text}")
    for service, texts in ((volume, ("3.0", "3.27", "3.71")), (compute, ("2.1", "2.60", "2.100")))
    for text in texts
]


def document(service: Any, text: str) -> dict[str, Any]:
    blueprints = composition.blueprints(service)
    return openapi.document(service.SERVICE, blueprints, Version.parse(text), "http://localhost")


def normal(path: str) -> str:
    return re.sub(r"<[^>]+>|{[^}]+}", "{}", path)


@pytest.mark.parametrize(("service", "text"), VERSIONS)
def test_documents_are_valid(service: Any, text: str) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document(service, text))


@pytest.mark.parametrize(("service", "text"), VERSIONS)
def test_every_operation_of_a_version_is_there_and_no_other(service: Any, text: str) -> None:
    found = set()
    for path, methods in document(service, text)["paths"].items():
        for method, described in methods.items():
            if method == "parameters":
                continue
            bodies = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            actions = [one["title"] for one in bodies.get("oneOf", ())]
            found |= {(method, normal(path), action) for action in actions or [None]}
    declared = {
        (one.method.lower(), normal(one.rule), one.action)
        for one in generate.operations(service)
        if Version.parse(text) in one.window
    }
    assert found == declared


OPERATIONS = [
    pytest.param(service, operation, id=f"{service.SERVICE.name}-{operation.name}")
    for service in (volume, compute)
    for operation in generate.operations(service)
]


@pytest.fixture(scope="module")
def newest() -> dict[str, dict[str, Any]]:
    return {service.SERVICE.name: document(service, str(service.SERVICE.maximum)) for service in (volume, compute)}


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
def test_samples_are_as_described(newest: dict[str, Any], service: Any, operation: Operation) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = newest[service.SERVICE.name]
    recorded = json.loads(generate.sample(service, operation).read_text(encoding="utf-8"))
    here = next(path for path in described["paths"] if normal(path) == normal(operation.rule))
    said = described["paths"][here][operation.method.lower()]
    status = recorded["response"]["line"].partition(" ")[0]
    answer = said["responses"].get(status) or said["responses"][f"{status[0]}XX"]
    pairs = [(recorded["response"]["body"], answer)]
    if "requestBody" in said:
        pairs.append((recorded["request"]["body"], said["requestBody"]))
    for body, part in pairs:
        if "content" in part:
            schema = {**part["content"]["application/json"]["schema"], "components": described["components"]}
            jsonschema.Draft202012Validator(schema).validate(body)


@pytest.fixture
def nobody(application: flask.Flask) -> Client:
    """Somebody whom the service refuses wherever a login is needed."""

    def refuse(_environ: object) -> None:
        raise errors.Unauthorized("The request you have made requires authentication.")

    application.extensions["cinderlite"]._strategy = refuse
    return Client(application, {})


def test_documents_are_open_and_of_the_version_asked(nobody: Client) -> None:
    for path, version in (
        ("/v3/openapi.json", "3.71"), ("/v3/openapi.json?microversion=3.27", "3.27"),
        ("/v3/openapi.json?microversion=latest", "3.71"), ("/v2.1/openapi.json", "2.100"),
        ("/v2.1/openapi.json?microversion=2.60", "2.60"),
    ):  # fmt: skip
        answer = nobody.get(path)
        assert (answer.status_code, answer.content_type) == (200, "application/json")
        assert answer.json["info"]["version"] == version
        prefix = path.partition("/openapi")[0]
        assert answer.json["servers"][0]["url"] == f"http://localhost{prefix}"
    assert "/attachments" not in nobody.get("/v3/openapi.json?microversion=3.26").json["paths"]
    assert "/attachments" in nobody.get("/v3/openapi.json?microversion=3.27").json["paths"]


@pytest.mark.parametrize(("asked", "status"), [("3.99", 406), ("x", 400), ("2.1", 406), ("", 400)])
def test_a_document_of_no_version_is_refused(nobody: Client, asked: str, status: int) -> None:
    assert nobody.get(f"/v3/openapi.json?microversion={asked}").status_code == status


def test_the_page_needs_nobody_else(nobody: Client) -> None:
    pytest.importorskip("flask_swagger_ui")
    for prefix in ("/v3", "/v2.1"):
        page = nobody.get(f"{prefix}/docs/")
        assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert loaded
        for name in loaded:
            assert "/" not in name
            with nobody.get(f"{prefix}/docs/{name}") as part:
                assert part.status_code == 200
    for path in ("/v3/docs/x", "/v3/docs/../app.py", "/v3/docs/%2e%2e%2fapp.py"):
        assert nobody.get(path).status_code in (401, 404)


def test_without_the_library_there_is_no_page(nobody: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert nobody.get("/v3/docs/").status_code == 404
    assert nobody.get("/v3/openapi.json").status_code == 200
