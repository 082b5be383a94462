# SPDX-License-Identifier: Apache-2.0
"""No secret is told: keys, passphrases, tokens and passwords are looked for in whatever the service says.

That is: answers, log lines of every level, rows of the database, and what it starts other programs with.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import importlib
import logging
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from oslo_log import _options

import scenarios
from api.test_policy import dump
from backends.service import Service
from cinderlite.api.auth import Identity
from cinderlite.context import World
from cinderlite.core import services
from cinderlite.core.keys import OwnKeys
from cinderlite.keys import Note
from cinderlite.keys.master import MasterKey
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeGuest

TOKEN = "canary-token-5up3r53cr3t"
SCENARIOS = sorted(info.name for info in pkgutil.iter_modules(scenarios.__path__))
#: Whose answer is a secret, for whoever starts servers.
LAUNCH = "compute/launches.show"
_LONG = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")
#: What was started, as long as somebody listens: Python has no way to take an audit hook back.
_STARTED: list[list[str]] = []


def _note_started(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        _STARTED.append([repr(arguments)])


sys.addaudithook(_note_started)


def forms(secret: bytes) -> set[str]:
    """A secret as it could be written."""
    return {secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1]}


class NosyKeys:
    """A key store that remembers every secret that it ever had."""

    def __init__(self, keys: Any) -> None:
        self._keys = keys
        self.had: set[str] = set()

    def keep(self, secret: bytes, note: Note) -> str:
        """See `KeyStore.keep`."""
        # The passphrase is the secret's hexadecimal digits.
        self.had |= forms(secret) | forms(secret.hex().encode())
        return str(self._keys.keep(secret, note))

    def secret(self, key_id: str) -> bytes:
        """See `KeyStore.secret`."""
        return bytes(self._keys.secret(key_id))

    def forget(self, key_id: str) -> None:
        """See `KeyStore.forget`."""
        self._keys.forget(key_id)


class Ear(logging.Handler):
    """Hears every line, with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write it down."""
        self.heard.append(self.format(record))


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Hears what is logged with `debug = true`: of other libraries what oslo.log lets through then."""
    root = logging.getLogger()
    before = root.level
    ear = Ear()
    root.addHandler(ear)
    root.setLevel(logging.DEBUG)
    for name, _, level in (pair.partition("=") for pair in _options.DEFAULT_LOG_LEVELS):
        logging.getLogger(name).setLevel(level)
    yield ear
    root.removeHandler(ear)
    root.setLevel(before)


class Eavesdropper:
    """Plays scenarios as an administrator with a token, and keeps all that is said."""

    def __init__(self, app: flask.Flask, world: World) -> None:
        edge = app.extensions["cinderlite"]
        roles = frozenset({"admin", "member", "reader"})
        edge._strategy = lambda _environ: Identity("alice", PROJECT, roles, token=TOKEN)
        self.master = os.urandom(32)
        signing = MasterKey([self.master])
        self.keys = NosyKeys(OwnKeys(world.db, signing))
        self.world = edge.world = dataclasses.replace(world, keys=self.keys, signing=signing)
        self.client = Client(app, {"X-Auth-Token": TOKEN})
        self.answers: list[str] = []
        #: what a transfer's maker is told once
        self.told: set[str] = set()
        #: keys of cephx users that there were
        self.cephx: set[str] = set()

    def call(self, method: str, path: str, body: Any = None, *, refused: int = 0) -> Any:
        """One call of a scenario."""
        version = "3.71" if path.startswith("/v3") else "2.100"
        answer = self.client.at(version).request(method, path, body)
        assert answer.status_code == refused or answer.status_code < 400, f"{method} {path}: {answer.text}"
        found = answer.get_json(silent=True)
        text = f"{answer.text} {answer.headers}"
        if isinstance(found, dict) and "auth_key" in found.get("transfer", {}):
            self.told.add(found["transfer"]["auth_key"])
            text = text.replace(found["transfer"]["auth_key"], "")
        if self.client.operation != LAUNCH:
            self.answers.append(f"{method} {path}: {text}")
        self._look()
        return found

    def _look(self) -> None:
        for cluster in (*(one.cluster for one in self.world.backends.values()), self.world.backup_cluster):
            assert isinstance(cluster, FakeCluster)
            for one in (cluster, *cluster.spaces.values()):
                self.cephx |= {user.key for user in one.made_users.values()} | {str(one.base64_key)}

    def secrets(self) -> set[str]:
        """What must not be told."""
        return {TOKEN, *self.keys.had, *self.told, *self.cephx, *forms(self.master)}


def plainly(said: str) -> str:
    """What was said, with whatever stands in it as base64."""
    more = []
    for word in _LONG.findall(said):
        try:
            more.append(base64.b64decode(word + "=" * (-len(word) % 4)).decode("latin-1"))
        except binascii.Error:
            continue
    return " ".join([said, *more])


def none_of(secrets: set[str], places: dict[str, list[str]]) -> None:
    """Fail if a secret is said anywhere."""
    for place, lines in places.items():
        for line in map(plainly, lines):
            assert not [one for one in secrets if one in line], f"{place}: {line}"


def encrypted(call: Callable[..., Any], world: World) -> None:
    """A volume with a passphrase, in all that is done with volumes."""
    kind = call("POST", "/v3/types", {"volume_type": {"name": "secret"}})["volume_type"]["id"]
    luks = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
    call("POST", f"/v3/types/{kind}/encryption", {"encryption": luks})
    server = world.guests.add_server("vm1", PROJECT)  # type: ignore[attr-defined]
    volume = call("POST", "/v3/volumes", {"volume": {"size": 1, "volume_type": "secret"}})["volume"]["id"]
    held = f"/v2.1/servers/{server.id}/os-volume_attachments"
    call("POST", held, {"volumeAttachment": {"volumeId": volume}})
    guest = world.guests.find(server.id)
    assert isinstance(guest, FakeGuest)
    disk = guest.held[volume]
    assert disk.passphrase in world.keys.had  # type: ignore[union-attr]
    assert disk.key
    call("POST", f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 2}})
    taken = call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})["snapshot"]["id"]
    clone = call("POST", "/v3/volumes", {"volume": {"size": 2, "snapshot_id": taken}})["volume"]["id"]
    call("GET", f"/v3/volumes/{clone}/encryption")
    backup = call("POST", "/v3/backups", {"backup": {"volume_id": volume, "force": True}})["backup"]["id"]
    call("GET", f"/v3/backups/{backup}/export_record")
    call("POST", f"/v3/backups/{backup}/restore", {"restore": {"name": "again"}})
    made = {"attachment": {"volume_uuid": clone, "instance_uuid": server.id, "connector": {"host": "h", "ip": "::1"}}}
    call("POST", "/v3/attachments", made)
    # A passphrase that is wrong, and one that cannot be had: what goes wrong is said without it.
    other = call("POST", "/v3/volumes", {"volume": {"size": 1, "volume_type": "secret"}})["volume"]["id"]
    guest.locked_images[f"volume-{other}"] = "another"
    call("POST", held, {"volumeAttachment": {"volumeId": other}}, refused=409)
    call("GET", f"/v2.1/servers/{server.id}/launch-arguments")
    call("DELETE", f"{held}/{volume}")
    for path in ("/v3/messages", "/v3/volumes/detail", "/v3/snapshots/detail", "/v3/attachments/detail"):
        call("GET", path)
    call("GET", f"/v2.1/servers/{server.id}/os-instance-actions")
    call("DELETE", f"/v3/volumes/{other}")


@pytest.mark.usefixtures("glance")
@pytest.mark.parametrize("name", [*SCENARIOS, "encrypted"])
def test_no_secret_is_told(application: flask.Flask, world: World, ear: Ear, name: str) -> None:
    _STARTED.clear()
    services.beat(world)
    spy = Eavesdropper(application, world)
    play = encrypted if name == "encrypted" else importlib.import_module(f"scenarios.{name}").play
    play(spy.call, spy.world)
    settle(spy.world)
    spy.answers.append(spy.client.get("/metrics").text)
    rows = [line for lines in dump(spy.world)[0].values() for line in lines]
    assert ear.heard
    none_of(
        spy.secrets(),
        {"answer": spy.answers, "log": ear.heard, "program": [str(one) for one in _STARTED], "row": rows},
    )


def test_a_secret_that_is_told_is_found() -> None:
    secret = b"0123456789abcdef"
    for said in (secret.hex(), f"{base64.b64encode(b'a long enough record with ' + secret.hex().encode()).decode()}"):
        with pytest.raises(AssertionError, match="log"):
            none_of(forms(secret), {"log": [f"key: {said}"]})


DATABASE, KEYSTONE = "canary-database-5up3r", "canary-keystone-5up3r"


def commands_of(pid: int) -> str:
    """How a process and its children look in a list of processes."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,ppid,args", "--width", "4000"], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 2) for line in listed.stdout.splitlines()[1:]]
    return "\n".join(line[2] for line in lines if str(pid) in line[:2])


def test_no_password_of_another_service_is_told(tmp_path: pathlib.Path) -> None:
    """Neither of Keystone's, nor the caller's token, when it does not answer, with `debug = true`."""
    keystone = {
        "www_authenticate_uri": "http://127.0.0.1:1", "auth_url": "http://127.0.0.1:1", "auth_type": "password",
        "username": "cinderlite", "password": KEYSTONE, "project_name": "service", "user_domain_id": "default",
        "project_domain_id": "default", "http_connect_timeout": 1, "http_request_max_retries": 0,
    }  # fmt: skip
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"auth_strategy": "keystone", "debug": "true"}, "keystone_authtoken": keystone
    }  # fmt: skip
    service = Service(tmp_path, tmp_path / "ceph.conf", tmp_path / "sockets", options)
    held = {"HOLD_GUESTS": str(tmp_path / "guests"), "HOLD_CEPH": str(tmp_path / "ceph")}
    try:
        service.start("backends.fakes_api", HOLD_GUESTS=held["HOLD_GUESTS"], HOLD_CEPH=held["HOLD_CEPH"])
        answer = service.call("GET", "/v3/volumes", user=None, headers={"X-Auth-Token": TOKEN})
        assert answer.status in {401, 503}
        listed = commands_of(service.pid)
    finally:
        service.kill()
    log = service.log.read_text(encoding="utf-8")
    assert "DEBUG" in log
    assert "fakes_api" in listed
    none_of({KEYSTONE, TOKEN}, {"answer": [f"{answer.text} {answer.headers}"], "log": [log], "process": [listed]})


def test_the_databases_password_is_not_told(tmp_path: pathlib.Path) -> None:
    """When it does not answer, which is when an error is most likely to say how it was asked."""
    conf = tmp_path / "cinderlite.conf"
    url = f"postgresql+psycopg://cinderlite:{DATABASE}@127.0.0.1:1/cinderlite"
    text = f"[DEFAULT]\ndebug = true\nauth_strategy = noauth\nosapi_volume_listen = 127.0.0.1\nstate_path = {tmp_path}\n[database]\nconnection = {url}\n"
    conf.write_text(text, encoding="utf-8")
    for words in ("cinderlite.cmd.manage --config-file {} db upgrade", "backends.fakes_api --config-file {}"):
        command = [sys.executable, "-m", *words.format(conf).split()]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
        assert done.returncode != 0
        assert "atabase" in done.stdout + done.stderr
        none_of({DATABASE}, {words: [done.stdout + done.stderr]})
