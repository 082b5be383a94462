# SPDX-License-Identifier: Apache-2.0
"""A real Glance from Debian's packages, in a directory of its own: SQLite, files or a pool of the lab's Ceph, loopback.

`python3-glance` brings the code without a daemon; the distribution's Python runs its API server, as one process. Make
it first, then a Keystone that has its `url` in the catalogue, then start both; without a Keystone it believes anybody.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from backends.keystone import Keystone
from lab import packages
from lab.ceph import Ceph
from lab.process import PATIENCE, WITH_ITS_PARENT, LabError, free_ports, run, wait

PACKAGES = packages.GLANCE
PYTHON = "/usr/bin/python3"
#: The pool of images that are in Ceph; the service's user may only read it.
POOL = "images"

_CONF = """\
[DEFAULT]
bind_host = 127.0.0.1
bind_port = {port}
workers = 0
log_file = {dir}/log
use_stderr = false
enabled_backends = {backends}
show_image_direct_url = true
show_multiple_locations = true
enabled_import_methods = []
node_staging_uri = file://{dir}/staging
[paste_deploy]
config_file = {dir}/paste.ini
flavor = {flavor}
[database]
connection = sqlite:///{dir}/db
[glance_store]
default_backend = {default}
[os_glance_tasks_store]
filesystem_store_datadir = {dir}/tasks
[os_glance_staging_store]
filesystem_store_datadir = {dir}/staging
[file]
filesystem_store_datadir = {dir}/images
[rbd]
rbd_store_pool = {pool}
rbd_store_user = admin
rbd_store_ceph_conf = {ceph_conf}
[keystone_authtoken]
{middleware}
"""

_PASTE = """\
[pipeline:glance-api-keystone]
pipeline = versionnegotiation authtoken context rootapp
[pipeline:glance-api-nobody]
pipeline = versionnegotiation everybody rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: versions
/v2: v2
[app:versions]
paste.app_factory = glance.api.versions:create_resource
[app:v2]
paste.app_factory = glance.api.v2.router:API.factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
[filter:everybody]
paste.filter_factory = glance.api.middleware.context:UnauthenticatedContextMiddleware.factory
"""


class Glance:
    """Images in files (store `file`) and, with a Ceph, also in its pool (store `rbd`, then the default)."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, keystone: Keystone | None = None, ceph: Ceph | None = None) -> None:
        """Make the database and serve. Raises LabError."""
        for name in ("images", "staging", "tasks"):
            (self.directory / name).mkdir(parents=True, mode=0o700)
        if ceph is not None:
            ceph.add_pool(POOL, read_only=True)
        (self.directory / "paste.ini").write_text(_PASTE, encoding="utf-8")
        conf = self.directory / "glance-api.conf"
        settings = {} if keystone is None else keystone.middleware("glance")
        conf.write_text(
            _CONF.format(
                dir=self.directory, port=self.port, pool=POOL, ceph_conf=ceph.conf if ceph else "",
                backends="file:file,rbd:rbd" if ceph else "file:file", default="rbd" if ceph else "file",
                flavor="keystone" if keystone else "nobody",
                middleware="\n".join(f"{name} = {value}" for name, value in settings.items()),
            ),
            encoding="utf-8",
        )  # fmt: skip
        run([*_program("manage"), "--config-file", conf, "db_sync"], timeout=120)
        with contextlib.closing(sqlite3.connect(self.directory / "db")) as database:
            database.execute("PRAGMA journal_mode = WAL")
        with (self.directory / "out").open("wb") as out:
            self._process = subprocess.Popen(
                [*_program("api"), "--config-file", str(conf)], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        wait(self._answers, timeout=60, what=f"Glance to answer; see {self.directory}/log and out")

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: pathlib.Path, ceph: Ceph | None = None) -> Iterator[Glance]:
        """One that believes anybody, installed if need be, and stopped whatever becomes of the body."""
        packages.ensure(PACKAGES)
        made = cls(directory)
        try:
            made.start(ceph=ceph)
            yield made
        finally:
            made.stop()

    def stop(self) -> None:
        """End the process and whatever it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # It may have ended itself.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE * 10)
            self._process = None

    def create(self, data: bytes, token: str = "", store: str = "", **properties: Any) -> str:
        """Make an image of these bytes (raw unless `disk_format` says otherwise) and return its id."""
        fields = {"name": "image", "disk_format": "raw", "container_format": "bare", **properties}
        made = self.call("POST", "/v2/images", json.dumps(fields).encode(), token=token)
        self.call(
            "PUT", f"/v2/images/{made['id']}/file", data, token=token, kind="application/octet-stream",
            headers={"X-Image-Meta-Store": store} if store else {},
        )  # fmt: skip
        return str(made["id"])

    def image(self, image_id: str, token: str = "") -> dict[str, Any]:
        """What it knows of an image; nothing when there is no such image."""
        try:
            return dict(self.call("GET", f"/v2/images/{image_id}", token=token))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return {}

    def images(self, token: str = "") -> list[dict[str, Any]]:
        """All images that the caller may see, at most a page."""
        return list(self.call("GET", "/v2/images", token=token)["images"])

    def data(self, image_id: str, token: str = "") -> bytes:
        """The bytes of an image."""
        with self._open("GET", f"/v2/images/{image_id}/file", token=token) as answer:
            return bytes(answer.read())

    def delete(self, image_id: str, token: str = "") -> None:
        """Remove an image."""
        self.call("DELETE", f"/v2/images/{image_id}", token=token)

    def call(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        *,
        token: str = "",
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One request; what it answers in JSON. Raises urllib.error.HTTPError."""
        with self._open(method, path, data, token=token, headers={"Content-Type": kind, **(headers or {})}) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def _open(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        *,
        token: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        with_token = {"X-Auth-Token": token} if token else {}
        request = urllib.request.Request(self.url + path, data, {**(headers or {}), **with_token}, method=method)
        return urllib.request.urlopen(request, timeout=60)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise LabError(f"Glance ended; see {self.directory}/log and out")
        try:
            with urllib.request.urlopen(f"{self.url}/versions", timeout=5):
                return True
        except OSError:
            return False


def _program(name: str) -> list[str | pathlib.Path]:
    code = f"{WITH_ITS_PARENT}; from glance.cmd.{name} import main; main()"
    return [PYTHON, "-W", "ignore", "-c", code]
