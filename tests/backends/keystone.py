# SPDX-License-Identifier: Apache-2.0
"""A real Keystone from Debian's packages, in a directory of its own: SQLite, fernet tokens, loopback.

`python3-keystone` brings the code without a daemon; a few lines of wsgiref under the distribution's Python serve it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import sqlite3
import subprocess
import urllib.request
from typing import Any

from lab import packages
from lab.process import PATIENCE, WITH_ITS_PARENT, LabError, free_ports, run, wait

PACKAGES = packages.KEYSTONE
PYTHON = "/usr/bin/python3"

_SERVE = f"""\
{WITH_ITS_PARENT}
import sys, wsgiref.simple_server
port = int(sys.argv.pop())  # Keystone reads the command line too.
from keystone.server.wsgi import initialize_public_application
class Server(wsgiref.simple_server.WSGIServer):
    request_queue_size = 64  # One request at a time: its SQLite refuses two writers at once.
class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_): pass
    def address_string(self): return self.client_address[0]
wsgiref.simple_server.make_server("127.0.0.1", port, initialize_public_application(), Server, Quiet).serve_forever()
"""


class Keystone:
    """Projects demo and other; users alice (member), rita (reader), bob (member of other), admin; two service users.

    `endpoint` is cinderlite's address, `image` a Glance's and `compute` that of another compute service if there is
    one.
    """

    def __init__(
        self, directory: pathlib.Path, endpoint: str, image: str | None = None, compute: str | None = None
    ) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.image = image
        self.compute = compute or endpoint
        self.port = free_ports(1)
        self.auth_url = f"http://127.0.0.1:{self.port}/v3"
        self.password = secrets.token_urlsafe(12)
        self.projects: dict[str, str] = {}
        self._token = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the database, serve, and fill it. Raises LabError."""
        for name in ("fernet-keys", "credential-keys"):
            (self.directory / name).mkdir(parents=True, mode=0o700)
        conf = self.directory / "keystone.conf"
        conf.write_text(
            f"[DEFAULT]\nlog_file = {self.directory}/log\n[database]\nconnection = sqlite:///{self.directory}/db\n"
            f"[token]\nprovider = fernet\n[fernet_tokens]\nkey_repository = {self.directory}/fernet-keys\n"
            f"[credential]\nkey_repository = {self.directory}/credential-keys\n"
            "[identity]\npassword_hash_rounds = 4\n"
            "[cache]\nenabled = true\nbackend = dogpile.cache.memory\n",
            encoding="utf-8",
        )
        user = str(os.getuid())
        manage: list[str | pathlib.Path] = [
            PYTHON,
            "-W",
            "ignore",
            "-c",
            "from keystone.cmd.manage import main; main()",
            "--config-file",
            conf,
        ]
        for words in (
            ["db_sync"],
            ["fernet_setup", "--keystone-user", user, "--keystone-group", str(os.getgid())],
            ["credential_setup", "--keystone-user", user, "--keystone-group", str(os.getgid())],
        ):
            run([*manage, *words], timeout=120)
        with contextlib.closing(sqlite3.connect(self.directory / "db")) as database:
            # Keystone writes while another of its sessions still reads, which SQLite's other journals refuse.
            database.execute("PRAGMA journal_mode = WAL")
        environment = {**os.environ, "OS_BOOTSTRAP_PASSWORD": self.password}
        urls = [part for kind in ("public", "internal", "admin") for part in (f"--bootstrap-{kind}-url", self.auth_url)]
        run([*manage, "bootstrap", "--bootstrap-region-id", "RegionOne", *urls], timeout=120, env=environment)
        with (self.directory / "out").open("wb") as out:
            self._process = subprocess.Popen(
                [PYTHON, "-W", "ignore", "-c", _SERVE, str(self.port)], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env={**os.environ, "OS_KEYSTONE_CONFIG_DIR": str(self.directory)}, start_new_session=True,
            )  # fmt: skip
        wait(self._answers, timeout=60, what=f"Keystone to answer; see {self.directory}/out")
        self._fill()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE * 10)

    def env(self, user: str, project: str = "demo") -> dict[str, str]:
        """What the clients read."""
        return {
            "OS_AUTH_URL": self.auth_url, "OS_USERNAME": user, "OS_PASSWORD": self.password,
            "OS_PROJECT_NAME": "admin" if user == "admin" else project, "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default", "OS_IDENTITY_API_VERSION": "3", "OS_REGION_NAME": "RegionOne",
        }  # fmt: skip

    def middleware(self, username: str = "cinderlite") -> dict[str, object]:
        """What a service puts into [keystone_authtoken]."""
        return {
            "auth_url": self.auth_url, "www_authenticate_uri": self.auth_url, "auth_type": "password",
            "username": username, "password": self.password, "project_name": "service",
            "user_domain_id": "default", "project_domain_id": "default", "region_name": "RegionOne",
            "service_token_roles_required": "true",
        }  # fmt: skip

    def token(self, user: str, project: str = "demo") -> str:
        """A token of a user in a project."""
        domain = {"id": "default"}
        who = {"name": user, "domain": domain, "password": self.password}
        scope = {"project": {"name": project, "domain": domain}}
        identity = {"methods": ["password"], "password": {"user": who}}
        body = json.dumps({"auth": {"identity": identity, "scope": scope}}).encode()
        request = urllib.request.Request(
            f"{self.auth_url}/auth/tokens", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.headers["X-Subject-Token"])

    def add_service(self, kind: str, name: str, url: str) -> None:
        """Put a service and its address into the catalogue."""
        service = self._call("POST", "/services", {"service": {"type": kind, "name": name}})["service"]["id"]
        endpoint = {"service_id": service, "interface": "public", "region_id": "RegionOne", "url": url}
        self._call("POST", "/endpoints", {"endpoint": endpoint})

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.auth_url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "X-Auth-Token": self._token}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.auth_url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except OSError as error:
            raise LabError(f"Keystone: {method} {path}: {error}") from error
        return json.loads(text) if text else None

    def _fill(self) -> None:
        self._token = self.token("admin", "admin")
        roles = {one["name"]: one["id"] for one in self._call("GET", "/roles")["roles"]}
        if "service" not in roles:
            roles["service"] = self._call("POST", "/roles", {"role": {"name": "service"}})["role"]["id"]
        for name in ("demo", "other", "service"):
            made = self._call("POST", "/projects", {"project": {"name": name, "domain_id": "default"}})
            self.projects[name] = made["project"]["id"]
        for name, project, given in (
            ("alice", "demo", ["member"]), ("rita", "demo", ["reader"]), ("bob", "other", ["member"]),
            ("cinderlite", "service", ["service", "admin"]), ("glance", "service", ["service", "admin"]),
        ):  # fmt: skip
            user = {"name": name, "domain_id": "default", "password": self.password}
            user_id = self._call("POST", "/users", {"user": user})["user"]["id"]
            for role in given:
                self._call("PUT", f"/projects/{self.projects[project]}/users/{user_id}/roles/{roles[role]}")
        for kind, name, url in (
            ("volumev3", "cinderv3", f"{self.endpoint}/v3"), ("block-storage", "cinder", f"{self.endpoint}/v3"),
            ("compute", "nova", f"{self.compute}/v2.1"),
            # Debian 12's openstack opens an image client for each volume it creates, and wants an address for it.
            ("image", "glance", self.image or f"{self.endpoint}/v3"),
        ):  # fmt: skip
            self.add_service(kind, name, url)
