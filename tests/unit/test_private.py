# SPDX-License-Identifier: Apache-2.0
"""Files with secrets that others may read: the service does not start, and says which and what to do."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import uuid

import pytest

from cinderlite import config, errors, private
from cinderlite.cmd import manage

MODES = [0o644, 0o604, 0o660, 0o641]


def load(directory: pathlib.Path, text: str, mode: int = 0o600) -> None:
    """Load a configuration of that text and mode."""
    path = directory / "cinderlite.conf"
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    config.load(["--config-file", str(path)])


@pytest.mark.parametrize(
    "option", ["[guests]\nqmp_tls_key", "[glance]\nkeyfile", "[keystone_authtoken]\nkeyfile", "[glance]\ncertfile"]
)
@pytest.mark.parametrize("mode", MODES)
def test_a_tls_key_that_others_may_use_is_refused(tmp_path: pathlib.Path, option: str, mode: int) -> None:
    key = tmp_path / "tls.key"
    key.touch()
    key.chmod(mode)
    with pytest.raises(errors.CinderliteError, match=f"chmod 640 {key}"):
        load(tmp_path, f"{option} = {key}\n")
    key.chmod(0o640)
    load(tmp_path, f"{option} = {key}\n")


@pytest.mark.parametrize(
    "line",
    [
        "[database]\nconnection = postgresql+psycopg://cinderlite:verysecret@db/cinderlite",
        "[keystone_authtoken]\npassword = verysecret",
        "[keystone_authtoken]\nmemcache_secret_key = verysecret",
        "[vault]\nroot_token_id = verysecret",
        "[vault]\napprole_role_id = x\napprole_secret_id = verysecret",
    ],
)
def test_a_configuration_with_passwords_is_for_the_service_alone(tmp_path: pathlib.Path, line: str) -> None:
    with pytest.raises(errors.CinderliteError, match="holds passwords") as refused:
        load(tmp_path, line, 0o644)
    assert "verysecret" not in str(refused.value)
    load(tmp_path, line, 0o640)


@pytest.mark.parametrize(
    "line",
    [
        "[database]\nconnection = postgresql+psycopg:///cinderlite",
        "[ceph]\nrbd_secret_uuid = a",
        "[keystone_authtoken]\nservice_token_roles_required = true",
        "[barbican]\nsend_service_user_token = True\n",
    ],
)
def test_a_configuration_without_may_be_read_by_anybody(tmp_path: pathlib.Path, line: str) -> None:
    load(tmp_path, line, 0o644)


def test_the_service_does_not_start_and_says_why(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cinderlite.conf"
    path.write_text("[keystone_authtoken]\npassword = verysecret\n", encoding="utf-8")
    path.chmod(0o644)
    command = [sys.executable, "-m", "cinderlite.cmd.api", "--config-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, f"chmod 640 {path}" in done.stderr) == (1, True), done.stderr


def test_the_database_that_is_made_is_for_the_service_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cinderlite.conf"
    path.write_text(f"[DEFAULT]\nstate_path = {tmp_path}/state\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["cinderlite-manage", "--config-file", str(path), "db", "upgrade"])
    assert manage.main() == 0
    [made] = (tmp_path / "state").iterdir()
    assert not private.is_open(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that is not the service's")
def test_what_root_makes_is_the_services(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands that open the database, and speak to guests, before the service first does."""
    nobody, state, path = 65534, tmp_path / "state", tmp_path / "cinderlite.conf"
    guests = tmp_path / "guests"
    guests.mkdir()
    (guests / "web1.json").write_text(f'{{"id": "{uuid.uuid4()}", "project_id": "demo"}}', encoding="utf-8")
    state.mkdir()
    os.chown(state, nobody, nobody)
    text = f"[DEFAULT]\nstate_path = {state}\n[ceph]\nrbd_ceph_conf = {tmp_path}/none\n[guests]\nqmp_socket_directory = {guests}\n"
    path.write_text(text, encoding="utf-8")
    for words in (["db", "upgrade"], ["server", "launch-args", "web1"]):
        monkeypatch.setattr(sys, "argv", ["cinderlite-manage", "--config-file", str(path), *words])
        manage.main()
    made = list(state.rglob("*"))
    assert {one.name for one in made} >= {"cinderlite.sqlite", "monitors", "web1.lock"}
    assert {one.stat().st_uid for one in made} == {nobody}
