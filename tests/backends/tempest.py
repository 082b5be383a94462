# SPDX-License-Identifier: Apache-2.0
"""OpenStack's own integration tests: the newest from PyPI in an environment of their own, and those of Debian 12.

They make the users and projects they need by themselves; they only get an administrator of Keystone. Their names in
Python are those of the installed packages: nothing of this directory may be on their path.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping

from backends.keystone import Keystone
from backends.launcher import FLAVOR
from lab import packages, venv

PACKAGES = ("tempest", "cinder-tempest-plugin")
CACHE = pathlib.Path(__file__).resolve().parent.parent.parent / ".lab" / "tempest"
#: Tests of the volume API, those of the compute API that are about volumes, and those of Cinder's plugin.
SELECTION = (
    r"^(tempest\.api\.volume|cinder_tempest_plugin\.api|tempest\.api\.compute\.volumes\.test_attach_volume\w*|"
    r"tempest\.api\.compute\.admin\.(test_assisted_volume_snapshots|test_server_external_events|test_volume_swap|"
    r"test_volumes_negative))\."
)
#: Name of the volume type whose volumes several servers may have.
SHARED_TYPE = "shared"

_LINE = re.compile(
    r"\{\d+\} (?:(?P<test>\S+\.\S+)|\w+ \((?P<class>\S+)\))(?: \[(?P<seconds>[\d.]+)s\])? \.\.\. "
    r"(?P<word>ok|FAILED|SKIPPED)"
    r"(?:: (?P<reason>.*))?"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How one test ended: `ok`, `FAILED` or `SKIPPED`, and why. A class that could not be set up is one, too."""

    name: str
    word: str
    seconds: float = 0.0
    reason: str = ""


def installed(kind: str) -> pathlib.Path:
    """The `bin` with the tests of a kind, "newest" or "debian12", installed where it is missing. Raises LabError."""
    if kind == "debian12":
        packages.ensure(PACKAGES)
        return pathlib.Path("/usr/bin")
    return venv.of_others(CACHE, *PACKAGES)


def configure(path: pathlib.Path, keystone: Keystone, *, image: str, backends: tuple[str, str]) -> None:
    """Write a tempest.conf; `image` is the id of one that everybody may use, `backends` are names of back ends."""
    directory = path.parent
    groups: dict[str, dict[str, object]] = {
        "DEFAULT": {"log_file": directory / "tempest.log", "debug": False},
        "oslo_concurrency": {"lock_path": directory},
        "auth": {
            "use_dynamic_credentials": True, "tempest_roles": "member", "create_isolated_networks": False,
            "admin_username": "admin", "admin_password": keystone.password, "admin_project_name": "admin",
            "admin_domain_name": "Default", "default_credentials_domain_name": "Default",
        },
        "identity": {"uri_v3": keystone.auth_url, "auth_version": "v3", "region": "RegionOne"},
        "service_available": {
            "cinder": True, "glance": True, "nova": True, "swift": False, "horizon": False,
            # Half of the volume tests are skipped without; none of those that run here asks it for anything.
            "neutron": True,
        },
        # So that readers do what readers may.
        "enforce_scope": {"cinder": True},
        "compute": {
            "image_ref": image, "image_ref_alt": image, "flavor_ref": FLAVOR, "flavor_ref_alt": FLAVOR,
            "max_microversion": "2.100", "build_timeout": 60,
        },
        # What Nova does with servers and the launcher does not is switched off.
        "compute-feature-enabled": {
            "volume_multiattach": True, "swap_volume": True, "resize": False, "shelve": False, "snapshot": False,
            "cold_migration": False, "console_output": False,
        },
        "validation": {"run_validation": False},
        "volume": {
            "catalog_type": "block-storage", "max_microversion": "latest", "backup_driver": "ceph",
            "storage_protocol": "ceph", "build_timeout": 60, "backend_names": ",".join(backends),
            "manage_snapshot_ref": "source-name,snapshot-%s", "volume_type_multiattach": SHARED_TYPE,
        },
        "volume-feature-enabled": {
            "backup": True, "clone": True, "snapshot": True, "manage_volume": True, "manage_snapshot": True,
            "extend_volume_with_snapshot": True, "extend_attached_volume": True,
            "extend_attached_encrypted_volume": True, "multi_backend": True, "volume_revert": True,
            "consistency_group": True,
        },
    }  # fmt: skip
    written = configparser.RawConfigParser()
    written.read_dict({group: {key: str(value) for key, value in values.items()} for group, values in groups.items()})
    with path.open("w", encoding="utf-8") as file:
        written.write(file)


def results(lines: Iterator[str]) -> Iterator[Result]:
    """The results in what `tempest run` prints; what it says about a failure becomes its reason."""
    failed: re.Match[str] | None = None
    said: list[str] = []
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            said.append(line)
            continue
        if failed:
            yield _result(failed, "".join(said))
        failed, said = (found, []) if found["word"] == "FAILED" else (None, [])
        if failed is None:
            yield _result(found, found["reason"] or "")
    if failed:
        yield _result(failed, "".join(said))


#: What follows the traceback of a failure: all requests that the test made. Its last lines are told.
_REQUESTS = re.compile(r"\nCaptured pythonlogging:\n~+\n")
_LINES_TOLD = 12


def _result(found: re.Match[str], reason: str) -> Result:
    # The tests' identifiers follow some names in brackets.
    name = (found["test"] or found["class"]).partition("[")[0]
    return Result(
        name, found["word"], float(found["seconds"] or 0), _shortened(reason.partition("\n======\nTotals\n")[0])
    )


def _shortened(reason: str) -> str:
    said, *more = _REQUESTS.split(reason)
    requests = [line for part in more for line in part.splitlines() if line.strip()]
    return "\n".join([said.strip(), *requests[-_LINES_TOLD:]]).strip()


@dataclasses.dataclass(frozen=True)
class Tempest:
    """The tests of one kind and the configuration that leads them to a cloud."""

    bin: pathlib.Path
    conf: pathlib.Path
    log: pathlib.Path

    def run(self, selection: str, *, concurrency: int, seconds: float) -> Iterator[Result]:
        """Run what the regular expression selects; after `seconds` all is ended, wherever it is."""
        with subprocess.Popen(
            [str(self.bin / "tempest"), "run", "--config-file", str(self.conf), "--regex", selection,
             "--concurrency", str(concurrency)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace",
            cwd=self.conf.parent, env=_environment(), start_new_session=True,
        ) as process:  # fmt: skip
            limit = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
            limit.start()
            try:
                assert process.stdout is not None
                yield from results(self._noted(process.stdout))
            finally:
                limit.cancel()

    def _noted(self, lines: Iterator[str]) -> Iterator[str]:
        with self.log.open("w", encoding="utf-8") as log:
            for line in lines:
                log.write(line)
                yield line


def _environment() -> Mapping[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "PYTHON"))}
    return clean | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
