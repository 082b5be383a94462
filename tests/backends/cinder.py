# SPDX-License-Identifier: Apache-2.0
"""Cinder's own RBD driver, from Debian's packages, on a real Ceph: without its API, message bus or database.

What Cinder does to an image it does here; what it writes into its database meanwhile is nothing to Ceph. A process of
the distribution's Python has the driver, and is told by lines of JSON which of its methods to call.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import uuid
from typing import Any

from lab.process import WITH_ITS_PARENT, LabError

PACKAGES = ("python3-cinder",)
PYTHON = "/usr/bin/python3"

_SERVE = f"""\
{WITH_ITS_PARENT}
import json, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr
from oslo_config import cfg
from cinder import context, objects
from cinder.volume import configuration
from cinder.volume.drivers import rbd
objects.register_all()
cfg.CONF(["--config-file", sys.argv[1]], project="cinder")
admin = context.get_admin_context()
driver = rbd.RBDDriver(configuration=configuration.Configuration(rbd.RBD_OPTS, config_group="ceph"), host="cinder@ceph")
driver.do_setup(admin)
driver.check_for_setup_error()
def volume(id, size):
    return objects.Volume(admin, id=id, _name_id=None, size=size, host="cinder@ceph#ceph", volume_type_id=None,
                          volume_type=None, encryption_key_id=None, use_quota=True, multiattach=False,
                          display_name="", metadata={{}}, admin_metadata={{}})
def snapshot(id, of):
    return objects.Snapshot(admin, id=id, volume_id=of["id"], volume=volume(**of), volume_size=of["size"])
for line in sys.stdin:
    asked = json.loads(line)
    things = [volume(**one["volume"]) if "volume" in one else snapshot(**one["snapshot"]) if "snapshot" in one else one
              for one in asked["of"]]
    try:
        found = {{"answer": getattr(driver, asked["method"])(*things)}}
    except Exception as error:
        traceback.print_exc()
        found = {{"error": f"{{type(error).__name__}}: {{error}}"}}
    print(json.dumps(found), file=answers, flush=True)
"""


class Cinder:
    """The driver, over the pool of a lab's cluster; `call` answers what the method returns."""

    def __init__(self, directory: pathlib.Path, ceph_conf: pathlib.Path, pool: str, user: str) -> None:
        conf = directory / "cinder.conf"
        conf.write_text(
            f"[DEFAULT]\nenabled_backends = ceph\nstate_path = {directory}\n[ceph]\nvolume_backend_name = ceph\n"
            f"rbd_pool = {pool}\nrbd_user = {user}\nrbd_ceph_conf = {ceph_conf}\nrbd_secret_uuid = {uuid.uuid4()}\n"
            f"[oslo_concurrency]\nlock_path = {directory}\n",
            encoding="utf-8",
        )
        self._log = directory / "cinder.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-W", "ignore", "-c", _SERVE, str(conf)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate(timeout=10)

    def call(self, method: str, *of: dict[str, Any]) -> Any:
        """Have it do something. Raises LabError with what Cinder says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "of": of}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LabError(f"Cinder's driver ended: {self._log.read_text(encoding='utf-8')[-2000:]}") from error
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"Cinder's driver ended: {self._log.read_text(encoding='utf-8')[-2000:]}")
        found = json.loads(line)
        if "error" in found:
            raise LabError(f"{method}: {found['error']}")
        return found["answer"]


def volume(size: int = 1) -> dict[str, Any]:
    """A new volume of Cinder's; its image is `image_of` that."""
    return {"volume": {"id": str(uuid.uuid4()), "size": size}}


def snapshot(of: dict[str, Any]) -> dict[str, Any]:
    """A new snapshot of Cinder's."""
    return {"snapshot": {"id": str(uuid.uuid4()), "of": of["volume"]}}


def image_of(of: dict[str, Any]) -> str:
    """What Cinder calls its image."""
    return f"volume-{of['volume']['id']}"


def snap_of(of: dict[str, Any]) -> str:
    """What Cinder calls its snapshot in Ceph."""
    return f"snapshot-{of['snapshot']['id']}"
