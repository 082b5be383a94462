# SPDX-License-Identifier: Apache-2.0
"""A real cinderlite-api process on a free port, and somebody who talks HTTP to it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import bcrypt

from lab.process import PATIENCE, LabError, free_ports, wait

PASSWORD = "correct horse"
#: name → project, roles
USERS = {"alice": ("demo", "member"), "rita": ("demo", "reader"), "bob": ("other", "member"), "root": ("demo", "admin")}

#: Options for tests that break Ceph or guests on purpose, and wait until that is noticed.
HASTY: dict[str, dict[str, object]] = {
    "ceph": {
        "rados_connect_timeout": 3, "rados_mon_op_timeout": 3, "rados_osd_op_timeout": 3, "rbd_call_timeout": 4
    },
    "guests": {"detach_wait": 3},
}  # fmt: skip


class Answer:
    """One answer: `status`, `headers`, `body` (the JSON, None without one)."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        self.status = status
        self.headers = headers
        self.text = text

    @property
    def body(self) -> Any:
        """The JSON of the answer."""
        return json.loads(self.text) if self.text else None


class Service:
    """The service in its own process; `options` are lines by group beside those that the lab needs, or None for none.

    With a `hostname` it takes itself to be on a machine of that name: its processes and this machine's others are
    strangers to each other.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        ceph_conf: pathlib.Path,
        sockets: pathlib.Path,
        options: Mapping[str, Mapping[str, object]] | None = None,
        *,
        hostname: str = "",
    ) -> None:
        self.directory = directory
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.conf = directory / "cinderlite.conf"
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        users = directory / "users"
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode()
        lines = [f"{name}:{hashed}:{project}:{roles}" for name, (project, roles) in USERS.items()]
        users.write_text("\n".join(lines) + "\n", encoding="ascii")
        users.chmod(0o600)
        own = "unshare --uts" if os.geteuid() == 0 else "unshare --map-root-user --uts"
        words = [*own.split(), "sh", "-c", f'hostname {hostname} && exec "$@"', "sh"]
        self._elsewhere = words if hostname else []
        self._groups: dict[str, dict[str, object]] = {
            "DEFAULT": {
                "osapi_volume_listen": "127.0.0.1", "osapi_volume_listen_port": self.port,
                "auth_strategy": "http_basic", "http_basic_auth_user_file": users, "state_path": directory,
                "reconcile_interval": 0.5, "project_id_regex": "demo|other|[0-9a-f-]{32,36}",
                "quota_volumes": 100,
            },
            "ceph": {"rbd_ceph_conf": ceph_conf},
            # A detach is over when it is answered, however slow the guest is.
            "guests": {"qmp_socket_directory": sockets, "detach_wait": 20, "guest_gone_after": 1},
        }  # fmt: skip
        self.configure(options or {})
        self._migrate()

    def _migrate(self) -> None:
        """Have the tables. Those of SQLite are copied from the first ones: to make them takes as long as many a test."""
        if "connection" in self._groups.get("database", {}):
            self.manage("db", "upgrade")
            return
        file = self.directory / "cinderlite.sqlite"
        if not _TABLES:
            self.manage("db", "upgrade")
            _TABLES.append(file.read_bytes())
        elif not file.exists():
            file.touch(mode=0o600)
            file.write_bytes(_TABLES[0])

    def configure(self, options: Mapping[str, Mapping[str, object]]) -> None:
        """Write the configuration file with further options."""
        for group, values in options.items():
            self._groups.setdefault(group, {}).update(values)
        text = "\n".join(
            f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in values.items() if value is not None)
            for group, values in self._groups.items()
        )
        self.conf.touch(mode=0o600)
        self.conf.write_text(text + "\n", encoding="utf-8")

    def manage(self, *words: str) -> str:
        """Run cinderlite-manage."""
        return self._tool("manage", *words)

    def status(self, *words: str) -> str:
        """Run cinderlite-status."""
        return self._tool("status", *words)

    def _tool(self, name: str, *words: str) -> str:
        command = [sys.executable, "-m", f"cinderlite.cmd.{name}", "--config-file", str(self.conf), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 60, check=False)
        if done.returncode != 0:
            raise LabError(f"{name} {words}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, launcher: str = "cinderlite.cmd.api", wait_for: bool = True, **environment: str) -> None:
        """Start the process, through another module for tests that break it on purpose."""
        tests = pathlib.Path(__file__).parent.parent
        env = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}:{tests.parent / 'tools'}", **environment}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._elsewhere, sys.executable, "-m", launcher, "--config-file", str(self.conf)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, start_new_session=True,
            )  # fmt: skip
        if wait_for:
            wait(self._answers, timeout=40, what=f"the service to answer; its log says {self.tail()}")

    def tail(self) -> str:
        """The end of the log, without what only looked."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if " GET /" not in line)[-3000:]

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise LabError(f"the service ended: {self.tail()}")
        try:
            return self.call("GET", "/v3/", user=None, timeout=2).status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """The process, of which all of its own are children."""
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """The processes that answer requests."""
        children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return [int(word) for word in children.split()]

    def stop(self) -> None:
        """End the process as an operator does."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE * 30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """End the process and its children as a power cut does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # It may have ended itself.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE * 10)
            self._process = None

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        user: str | None = "alice",
        version: str = "",
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. `version` such as "3.71" or "2.89"."""
        headers = {"Accept": "application/json", **(headers or {})}
        if user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
        if version:
            headers["OpenStack-API-Version"] = ("volume " if version.startswith("3") else "compute ") + version
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read().decode())

    # -- what tests do all the time

    def create(self, size: int = 1, **fields: Any) -> str:
        """Create a volume and return its id."""
        made = self.call("POST", "/v3/volumes", {"volume": {"size": size, **fields}})
        assert made.status == 202, made.text
        return str(made.body["volume"]["id"])

    def volume(self, volume_id: str) -> dict[str, Any]:
        """A volume as it is now; an empty one when it is gone."""
        shown = self.call("GET", f"/v3/volumes/{volume_id}", version="3.71")
        return dict(shown.body["volume"]) if shown.status == 200 else {"status": "gone"}

    def attach(self, server_id: str, volume_id: str) -> Answer:
        """Attach a volume."""
        path = f"/v2.1/servers/{server_id}/os-volume_attachments"
        return self.call("POST", path, {"volumeAttachment": {"volumeId": volume_id}}, version="2.60")

    def detach(self, server_id: str, volume_id: str) -> Answer:
        """Detach a volume."""
        return self.call("DELETE", f"/v2.1/servers/{server_id}/os-volume_attachments/{volume_id}")

    def messages(self, volume_id: str) -> list[str]:
        """What the service has to say about a volume, newest first."""
        found = self.call("GET", "/v3/messages", version="3.5").body["messages"]
        return [one["user_message"] for one in found if one["resource_uuid"] == volume_id]

    def rest(self, volume_id: str, status: str, timeout: float = 60) -> None:
        """Wait for a volume to come to rest in a status."""
        deadline = time.monotonic() + PATIENCE * timeout
        while (now := self.volume(volume_id)["status"]) != status:
            if time.monotonic() > deadline:
                raise LabError(
                    f"volume {volume_id} is {now}, not {status}, after {PATIENCE * timeout:g} s: {self.tail()}"
                )
            time.sleep(0.1)


#: SQLite's file as `cinderlite-manage db upgrade` has made it, once there was one.
_TABLES: list[bytes] = []


class OverFakes(Service):
    """The service over fakes, of which one can see how it ends."""

    def begin(self, place: str = "") -> None:
        """Start it; on another machine than this one, as far as it can tell, with a `place`."""
        guests, ceph, start = (str(self.directory / name) for name in ("HOLD_GUESTS", "HOLD_CEPH", "HOLD_START"))
        self.start("backends.fakes_api", HOLD_GUESTS=guests, HOLD_CEPH=ceph, HOLD_START=start, PLACE=place)

    def hold(self) -> None:
        """Have nothing change in the cluster from now on, until `go_on`."""
        (self.directory / "HOLD_CEPH").touch()

    def go_on(self) -> None:
        """Let things change."""
        (self.directory / "HOLD_CEPH").unlink()

    def held(self) -> bool:
        """Whether a volume is being made."""
        return any(one["status"] == "creating" for one in self.call("GET", "/v3/volumes/detail").body["volumes"])

    def terminate(self) -> None:
        """Tell it to stop."""
        os.kill(self.pid, signal.SIGTERM)

    def ended(self) -> int:
        """Wait for it to end, and how it did."""
        assert self._process is not None
        status = self._process.wait(PATIENCE * 30)
        self._process = None
        return status
