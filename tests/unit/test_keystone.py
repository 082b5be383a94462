# SPDX-License-Identifier: Apache-2.0
"""Whom keystonemiddleware confirmed is known for a moment: to nobody else, for no longer, and for nothing else.

The middleware is the real one, over HTTP to what answers as far as it asks. A real Keystone: tests/clients.
"""

from __future__ import annotations

import datetime
import http.server
import json
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Response

from cinderlite import config, errors
from cinderlite.api import auth, keystone
from lab.process import wait

LONG = 3600.0


class Peer:
    """Answers as Keystone does: `tokens` are the valid ones, `looked_at` those that were asked for, in order."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.looked_at: list[str] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"peer": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v3"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def issue(self, token: str, roles: str = "member", project: str = "p", lasts: float = LONG, **more: Any) -> str:
        """Make a token valid."""
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=lasts)
        domain = {"id": "default", "name": "Default"}
        self.tokens[token] = {
            "methods": ["password"], "user": {"id": f"user-of-{token}", "name": token, "domain": domain},
            "roles": [{"id": role, "name": role} for role in roles.split(",")], "audit_ids": [token],
            "issued_at": "2026-01-31T12:00:00.000000Z", "expires_at": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "catalog": [
                {"type": kind, "endpoints": [{"interface": "internal", "region_id": "r", "url": self.url}]}
                for kind in ("identity", "volumev3", "compute")
            ],
            **({"project": {"id": project, "name": project, "domain": domain}} if project else {}), **more,
        }  # fmt: skip
        return token

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(http.server.BaseHTTPRequestHandler):
    peer: Peer

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v3":
            links = [{"rel": "self", "href": self.peer.url}]
            return self._answer(200, {"version": {"id": "v3.14", "status": "stable", "links": links}})
        token = self.headers["X-Subject-Token"]
        self.peer.looked_at.append(token)
        known = self.peer.tokens.get(token)
        return self._answer(200, {"token": known}) if known else self._answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, {"token": self.peer.tokens["own"]}, **{"X-Subject-Token": "own"})

    def _answer(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    made.issue("own", "service")
    yield made
    made.stop()


Ask = Callable[..., Any]


@pytest.fixture
def ask(peer: Peer, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Ask:
    """A request with these headers; the answer's JSON says who asked."""
    options = {
        "auth_type": "password", "auth_url": peer.url, "www_authenticate_uri": peer.url, "username": "u",
        "password": "p", "project_name": "service", "user_domain_id": "default", "project_domain_id": "default",
        "service_token_roles_required": True, **getattr(request, "param", {}),
    }  # fmt: skip
    path = tmp_path / "cinderlite.conf"
    path.touch(0o600)
    path.write_text(
        f"[DEFAULT]\nauth_strategy = keystone\nstate_path = {tmp_path}\n[keystone_authtoken]\n"
        + "".join(f"{name} = {value}\n" for name, value in options.items()),
        encoding="utf-8",
    )
    conf = config.load(["--config-file", str(path)])

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            who = auth.keystone(environ)
        except (errors.Unauthorized, errors.Forbidden) as error:
            return Response(str(error), error.status)(environ, start_response)
        said = {"user": who.user_id, "project": who.project_id, "roles": sorted(who.roles)}
        text = json.dumps({**said, "services": sorted(who.service_roles), "token": who.token})
        return Response(text, content_type="application/json")(environ, start_response)

    client = Client(keystone.Keystone(app, conf))

    def asked(
        token: str | None, method: str = "GET", path: str = "/v3/volumes", login: str = "", **headers: str
    ) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"X-Auth-Token": token, **named} if token else named
        kerberos = {"AUTH_TYPE": "Negotiate", "REMOTE_USER": login} if login else {}
        return client.open(path, method=method, headers=given, environ_overrides=kerberos)

    return asked


def test_who_is_confirmed_stays_who_he_is(peer: Peer, ask: Ask) -> None:
    peer.issue("a", "reader", "first")
    peer.issue("b", "admin", "second")
    for _ in range(3):
        said = ask("a").json
        assert said == {
            "user": "user-of-a", "project": "first", "roles": ["reader"], "services": [], "token": "a",
        }  # fmt: skip
        assert ask("b").json["roles"] == ["admin", "member", "reader"]
    assert peer.looked_at == ["a", "b"]


def test_no_header_of_a_client_makes_him_somebody_else(peer: Peer, ask: Ask) -> None:
    peer.issue("a", "reader", "first")
    claims = {
        "X_User_Id": "root", "X_Project_Id": "second", "X_Roles": "admin", "X_Identity_Status": "Confirmed",
        "X_Service_Roles": "service", "X_Service_Identity_Status": "Confirmed",
    }  # fmt: skip
    honest = ask("a").json
    for _ in range(2):
        assert ask("a", **claims).json == honest
        for token in (None, "", "unknown", "a "):
            assert ask(token, **claims).status_code == (200 if token == "a " else 401), token
    assert ask("a ", **claims).json == {**honest, "token": "a "}


def test_a_service_is_known_with_its_token_only(peer: Peer, ask: Ask) -> None:
    peer.issue("a")
    peer.issue("nova", "service")
    peer.issue("bob", "member")
    for _ in range(2):
        assert ask("a", X_Service_Token="nova").json["services"] == ["service"]
        assert ask("a").json["services"] == []
        assert ask("a", X_Service_Token="bob").status_code == 401, "bob is no service"
        assert ask("nova", X_Service_Token="a").status_code == 401
    expired = peer.issue("late", lasts=-60.0)
    for _ in range(2):
        assert ask(expired, X_Service_Token="nova").json["user"] == "user-of-late", (
            "for a service, as middleware has it"
        )
        assert ask(expired).status_code == 401


@pytest.fixture
def for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was confirmed is remembered for longer than any test waits."""
    monkeypatch.setattr(keystone, "REMEMBERED", LONG)


@pytest.mark.usefixtures("for_long")
def test_no_token_works_after_its_end(peer: Peer, ask: Ask) -> None:
    peer.issue("short", lasts=4.0)
    assert ask("short").status_code == 200
    wait(lambda: ask("short").status_code == 401, timeout=6, what="the token's end")


@pytest.mark.parametrize(
    ("ask", "most"), [({"token_cache_time": 1}, 10.0), ({"token_cache_time": -1}, 0.0)], indirect=["ask"]
)
def test_a_revoked_token_works_as_long_as_it_may_be_kept(peer: Peer, ask: Ask, most: float) -> None:
    peer.issue("a")
    assert ask("a").status_code == 200
    del peer.tokens["a"]
    if most:
        wait(lambda: ask("a").status_code == 401, timeout=most, what="the token to be looked at again")
    assert ask("a").status_code == 401


@pytest.mark.parametrize("ask", [{"service_type": "volumev3"}], indirect=True)
def test_access_rules_are_looked_at_for_each_request(peer: Peer, ask: Ask) -> None:
    rules = [
        {"service": "volumev3", "method": "GET", "path": "/v3/**"},
        {"service": "compute", "method": "POST", "path": "/v2.1/servers/*/os-volume_attachments"},
    ]
    peer.issue("ruled", application_credential={"id": "c", "name": "c", "restricted": True, "access_rules": rules})
    for _ in range(2):
        assert ask("ruled").status_code == 200
        assert ask("ruled", "DELETE", "/v3/volumes/x").status_code == 401
        assert ask("ruled", "GET", "/v2.1/servers").status_code == 401
        assert ask("ruled", "POST", "/v2.1/servers/x/os-volume_attachments").status_code == 200


def test_access_rules_that_nobody_can_judge_refuse_everything(peer: Peer, ask: Ask) -> None:
    rules = [{"service": "volumev3", "method": "GET", "path": "/v3/**"}]
    peer.issue("ruled", application_credential={"id": "c", "name": "c", "restricted": True, "access_rules": rules})
    assert [ask("ruled").status_code for _ in range(2)] == [401, 401]


def test_a_token_bound_to_a_login_is_worth_nothing_to_another(peer: Peer, ask: Ask) -> None:
    peer.issue("bound", bind={"kerberos": "alice"})
    for _ in range(2):
        assert ask("bound", login="alice").status_code == 200
        assert [ask("bound").status_code, ask("bound", login="bob").status_code] == [401, 401]


def test_a_token_without_a_project_is_refused(peer: Peer, ask: Ask) -> None:
    peer.issue("unscoped", project="")
    assert [ask("unscoped").status_code for _ in range(2)] == [403, 403]


@pytest.mark.parametrize("ask", [{"delay_auth_decision": True}], indirect=True)
def test_whom_the_middleware_lets_through_is_nobody(peer: Peer, ask: Ask) -> None:
    assert [ask(token, X_User_Id="root", X_Identity_Status="Confirmed").status_code for token in (None, "x")] == [
        401,
        401,
    ]
    assert ask(peer.issue("a")).status_code == 200


@pytest.mark.parametrize("ask", [{"delay_auth_decision": True, "service_type": "volumev3"}], indirect=True)
def test_the_token_of_no_service_lifts_no_rule(peer: Peer, ask: Ask) -> None:
    """The middleware judges no access rule where a service asks, and leaves it to others that none does."""
    rules = [{"service": "volumev3", "method": "GET", "path": "/v3/**"}]
    peer.issue("ruled", application_credential={"id": "c", "name": "c", "restricted": True, "access_rules": rules})
    for _ in range(2):
        assert ask("ruled").status_code == 200
        assert ask("ruled", "DELETE", X_Service_Token="none").status_code == 401


@pytest.mark.usefixtures("for_long")
def test_no_token_of_a_service_works_after_its_end(peer: Peer, ask: Ask) -> None:
    peer.issue("a")
    peer.issue("nova", "service", lasts=4.0)
    assert ask("a", X_Service_Token="nova").status_code == 200
    wait(lambda: ask("a", X_Service_Token="nova").status_code == 401, timeout=6, what="the service's token's end")


def test_a_service_whose_token_is_bound_to_a_login_is_nobody_without_it(peer: Peer, ask: Ask) -> None:
    peer.issue("a")
    peer.issue("nova", "service", bind={"kerberos": "nova"})
    for _ in range(2):
        assert ask("a", login="nova", X_Service_Token="nova").status_code == 200
        assert ask("a", X_Service_Token="nova").status_code == 401
