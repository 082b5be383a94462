# SPDX-License-Identifier: Apache-2.0
"""Logging in by password file, by Keystone's headers, and not at all."""

from __future__ import annotations

import base64
import pathlib

import bcrypt
import pytest
from oslo_config import cfg

from cinderlite import errors
from cinderlite.api import auth
from cinderlite.cmd import api
from conftest import configuration


def header(user: str, password: str) -> dict[str, str]:
    return {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def users(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "users"
    hashed = bcrypt.hashpw("sesam:öffne".encode(), bcrypt.gensalt(4)).decode()
    path.write_text(f"# staff\n\nalice:{hashed}:demo:member\nroot:{hashed}:ops:admin\n", encoding="utf-8")
    path.chmod(0o640)
    return path


def test_a_password_file_maps_users_to_projects_and_roles(users: pathlib.Path) -> None:
    strategy = auth.PasswordFile(users)
    who = strategy(header("alice", "sesam:öffne"))
    assert (who.user_id, who.project_id, who.roles) == ("alice", "demo", frozenset({"member", "reader"}))
    assert strategy(header("alice", "sesam:öffne")) == who
    assert strategy(header("root", "sesam:öffne")).roles == {"admin", "member", "reader"}


@pytest.mark.parametrize(
    "environ",
    [
        {}, header("alice", "wrong"), header("nobody", "sesam:öffne"), header("alice", ""), header("alice", "x" * 100),
        {"HTTP_AUTHORIZATION": "Basic !!!"}, {"HTTP_AUTHORIZATION": "Basic"}, {"HTTP_AUTHORIZATION": "Bearer x"},
        {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
    ],
)  # fmt: skip
def test_what_is_not_a_right_password_is_refused(users: pathlib.Path, environ: dict[str, str]) -> None:
    strategy = auth.PasswordFile(users)
    strategy(header("alice", "sesam:öffne"))
    with pytest.raises(errors.Unauthorized):
        strategy(environ)


def test_a_changed_password_counts_at_once(users: pathlib.Path) -> None:
    strategy = auth.PasswordFile(users)
    strategy(header("alice", "sesam:öffne"))
    hashed = bcrypt.hashpw(b"new", bcrypt.gensalt(4)).decode()
    users.write_text(f"alice:{hashed}:demo:member\n", encoding="utf-8")
    with pytest.raises(errors.Unauthorized):
        strategy(header("alice", "sesam:öffne"))
    assert strategy(header("alice", "new")).user_id == "alice"


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(users: pathlib.Path, mode: int) -> None:
    users.chmod(mode)
    with pytest.raises(errors.CinderliteError, match="chmod 640"):
        auth.PasswordFile(users)


@pytest.mark.parametrize("line", ["alice", "alice:plain:demo:member", ":$2b$x:demo:member", "a:$2b$x::member"])
def test_a_line_that_is_none_is_named(users: pathlib.Path, line: str) -> None:
    users.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(errors.CinderliteError, match="line 1"):
        auth.PasswordFile(users)


def test_noauth_listens_on_loopback_only(tmp_path: pathlib.Path) -> None:
    conf = configuration(tmp_path)
    for address in ("127.0.0.1", "::1", "localhost"):
        conf.set_override("osapi_volume_listen", address)
        api.check(conf)
    for address in ("0.0.0.0", "::", "192.0.2.1"):
        conf.set_override("osapi_volume_listen", address)
        with pytest.raises(errors.CinderliteError, match="noauth"):
            api.check(conf)
    conf.set_override("noauth_allow_remote", True)
    api.check(conf)


def test_keystone_without_an_account_for_the_service_is_refused(conf: cfg.ConfigOpts) -> None:
    conf.set_override("auth_strategy", "keystone")
    with pytest.raises(errors.CinderliteError, match=r"\[keystone_authtoken\].*http_basic"):
        api.check(conf)
    conf.set_override("auth_type", "password", "keystone_authtoken")
    api.check(conf)
