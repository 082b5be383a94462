# SPDX-License-Identifier: Apache-2.0
"""Runs OpenStack's integration tests on a real Ceph, a real Keystone and this service; see `tox -e tempest`.

`expected.yaml` beside this file says which tests must pass, and which cannot apply and why. A run fails when one that
must pass did not, for whatever reason.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

from backends import glance as images
from backends import keystone as identity
from backends import tempest
from backends.expectations import Expectations
from backends.glance import Glance
from backends.keystone import Keystone
from backends.launcher import Launcher
from backends.service import Service
from lab import packages
from lab.ceph import Ceph
from lab.process import PATIENCE, LabError, wait

#: What two cores do in six minutes must have ended by then.
SECONDS = 600 * PATIENCE
#: The second back end, and its pool.
SECOND = "second"
BACKUPS = "backups"
IMAGE_BYTES = 2**20
#: A request as the service's log has it.
_FAULT = re.compile(r"\w+ /\S+ 5\d\d(?= [\d.]+ ms$)", re.MULTILINE)
HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A service over two pools of a Ceph of its own, with a Keystone, a Glance of one image, and who starts servers."""

    ceph: Ceph
    service: Service
    keystone: Keystone
    launcher: Launcher
    image: str

    def faults(self) -> dict[str, str]:
        """What must not be after the tests, whatever they say: requests that ended in 5xx, images nobody owns."""
        with contextlib.suppress(LabError):  # What a clone still needed is tried again after a minute at most.
            wait(lambda: not self._images(), timeout=90, what="the pools to be empty")
        found = {
            "requests that ended in 5xx": _FAULT.findall(self.service.log.read_text(encoding="utf-8")),
            "images that are left": self._images(),
            "servers that are left": list(self.launcher.guests),
        }
        return {name: "\n".join(lines) for name, lines in found.items() if lines}

    def _images(self) -> list[str]:
        return [
            f"{pool}/{line}"
            for pool in (self.ceph.pool, SECOND, BACKUPS)
            for words in (("ls",), ("trash", "ls"))
            for line in self.ceph.rbd(*words, pool).splitlines()
        ]


@contextlib.contextmanager
def cloud(directory: pathlib.Path, *, images_in_ceph: bool) -> Iterator[Cloud]:
    """A cloud, whatever becomes of the body."""
    packages.ensure((*identity.PACKAGES, *images.PACKAGES))
    with contextlib.ExitStack() as stack:
        ceph = Ceph(directory / "ceph")
        stack.callback(ceph.destroy)
        ceph.start()
        for pool in (SECOND, BACKUPS):
            ceph.add_pool(pool)
        service = Service(directory / "service", ceph.conf, directory / "guests")
        glance = Glance(directory / "glance")
        launcher = Launcher(directory / "vms", directory / "guests", service)
        keystone = Keystone(directory / "keystone", service.url, glance.url, launcher.url)
        stack.callback(keystone.stop)
        keystone.start()
        stack.callback(launcher.stop)
        launcher.start(keystone)
        # tempest takes most of its volume tests for those of a cloud with networks, and asks for some to clean up.
        keystone.add_service("network", "neutron", f"{service.url}/no-networks-here")
        stack.callback(glance.stop)
        glance.start(keystone, ceph if images_in_ceph else None)
        service.configure(options(keystone, ceph, key_file(directory / "key")))
        stack.callback(service.stop)
        service.start()
        admin = keystone.token("admin", "admin")
        add_type(service, admin, tempest.SHARED_TYPE, multiattach="<is> True")
        image = glance.create(bytes(IMAGE_BYTES), admin, visibility="public")
        yield Cloud(ceph, service, keystone, launcher, image)


def add_type(service: Service, token: str, name: str, **specs: str) -> None:
    """Make a volume type."""
    body = json.dumps({"volume_type": {"name": name, "extra_specs": specs}}).encode()
    headers = {"Content-Type": "application/json", "X-Auth-Token": token}
    with urllib.request.urlopen(urllib.request.Request(f"{service.url}/v3/types", body, headers), timeout=30):
        pass


def key_file(path: pathlib.Path) -> pathlib.Path:
    """A master key for encrypted volumes."""
    path.write_text(secrets.token_hex(32), encoding="ascii")
    path.chmod(0o600)
    return path


def options(keystone: Keystone, ceph: Ceph, key: pathlib.Path) -> dict[str, dict[str, object]]:
    """What the service is told beside what the lab tells it anyway."""
    return {
        "DEFAULT": {
            "auth_strategy": "keystone", "enabled_backends": f"ceph,{SECOND}",
            "backup_ceph_pool": BACKUPS, "backup_ceph_conf": ceph.conf, "backup_ceph_user": ceph.user,
        },
        "encryption": {"key_store": "database", "key_file": key},
        "keystone_authtoken": keystone.middleware(),
        SECOND: {"rbd_ceph_conf": ceph.conf, "rbd_pool": SECOND},
    }  # fmt: skip


def suite(directory: pathlib.Path, kind: str, selection: str) -> tuple[list[tempest.Result], dict[str, str]]:
    """Run the tests of a kind and print a line for each; how they ended, and what is wrong after them."""
    work = directory / kind
    work.mkdir()
    found = tempest.installed(kind)
    # Debian's Glance does not delete an image in Ceph that a volume is a clone of, which the newest tests ask of it.
    with cloud(work, images_in_ceph=kind == "debian12") as made:
        conf = work / "tempest.conf"
        tempest.configure(conf, made.keystone, image=made.image, backends=("ceph", SECOND))
        done = []
        for one in tempest.Tempest(found, conf, work / "out").run(selection, concurrency=2, seconds=SECONDS):
            print(f"{one.word:8}{one.seconds:7.2f}  {one.name}", flush=True)
            done.append(one)
        return done, made.faults()


def main() -> int:
    """Run the suite of the kind that the command line names, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("newest", "debian12"))
    parser.add_argument("--only", default="", metavar="REGEX", help="tests to run; all by default")
    parser.add_argument("--directory", type=pathlib.Path, help="where everything is kept; a temporary one by default")
    options = parser.parse_args()
    selection = f"{tempest.SELECTION}.*({options.only})"
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as temporary:
        try:
            done, faults = suite(options.directory or pathlib.Path(temporary), options.kind, selection)
        except LabError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    verdict = Expectations.read(HERE / "expected.yaml", options.kind, selection).judge(done)
    verdict = dataclasses.replace(verdict, broken=verdict.broken | faults)
    print(verdict.text(time.monotonic() - began))
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
