# SPDX-License-Identifier: Apache-2.0
"""The real clients: the newest from PyPI in an environment of their own, and those of Debian 12."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

from lab import packages, venv
from lab.process import LabError

PACKAGES = packages.CLIENTS
NEWEST = ("python-openstackclient", "python-cinderclient", "openstacksdk")
CACHE = pathlib.Path(__file__).resolve().parent.parent.parent / ".lab" / "clients"


def newest() -> pathlib.Path:
    """The `bin` of an environment with the newest clients, made once a checkout."""
    return venv.of_others(CACHE, *NEWEST)


@dataclasses.dataclass(frozen=True)
class Client:
    """Somebody at a shell with clients of one kind and an environment that logs them in."""

    bin: pathlib.Path
    environment: Mapping[str, str]
    #: Options that log `cinder` in where it does not take the environment (it stops over OS_AUTH_TYPE).
    cinder_options: tuple[str, ...] = ()

    def run(self, *words: str, timeout: float = 90) -> str:
        """Run a command and return what it printed. Raises LabError with what it said on failure."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "PYTHON"))}
        try:
            done = subprocess.run(
                [str(self.bin / words[0]), *words[1:]], capture_output=True, text=True, timeout=timeout, check=False,
                env={**clean, "PYTHONWARNINGS": "ignore", **self.environment}, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{' '.join(words)} did not end within {timeout:g} s") from error
        if done.returncode != 0:
            raise LabError(f"$ {' '.join(words)}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def openstack(self, *words: str) -> Any:
        """`openstack … -f json`, parsed; None when it prints nothing."""
        silent = any(word in words for word in ("delete", "set", "unset", "remove"))
        said = self.run("openstack", *words, *([] if silent else ["-f", "json"]))
        return json.loads(said) if said.strip() and not silent else None

    def cinder(self, *words: str) -> str:
        """`cinder …`, as it prints."""
        environment = {} if self.cinder_options else self.environment
        return dataclasses.replace(self, environment=environment).run("cinder", *self.cinder_options, *words)
