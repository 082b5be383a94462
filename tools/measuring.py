# SPDX-License-Identifier: Apache-2.0
"""What `tools/bench` measures with: a client, time, and what the service's processes use."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import pathlib
import platform
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy

from backends.service import PASSWORD, Service
from lab.process import LabError, run


class Client:
    """One kept connection to the API, with a token if there is a Keystone."""

    def __init__(self, service: Service, token: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        word = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
        login = {"X-Auth-Token": token} if token else {"Authorization": f"Basic {word}"}
        self._headers = login | {"Content-Type": "application/json"}

    def call(self, method: str, path: str, body: Any = None, version: str = "") -> Any:
        """One request; returns the JSON of the answer."""
        headers = dict(self._headers)
        if version:
            headers["OpenStack-API-Version"] = f"volume {version}"
        self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else None


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that `work` took, and what it returned."""
    began = time.perf_counter()
    result = work()
    return (time.perf_counter() - began) * 1000, result


def expect(holds: bool, what: str) -> None:
    """A figure of something that did not happen must not be printed."""
    if not holds:
        raise RuntimeError(f"expected {what}")


def available(client: Client, volume: str) -> None:
    """A volume's first GET must be final."""
    status = client.call("GET", f"/v3/volumes/{volume}")["volume"]["status"]
    expect(status == "available", "the first GET to be final")


def processor(service: Service) -> float:
    """Seconds of processors that the service and its processes have used."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It may have ended.
            # proc(5): the name in parentheses may hold spaces; after it come state and parent, and utime and stime.
            number, _, rest = path.read_text(encoding="ascii", errors="replace").partition(" (")
            words = rest.rpartition(")")[2].split()
            if service.pid in (int(number), int(words[1])):
                ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, str]:
    """What was measured on, for whoever compares figures."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = {line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processors": f"{os.cpu_count()} × {', '.join(sorted(models)) or 'unknown'}",
        "memory": f"{total:.1f} GiB",
        "system": f"Linux {os.uname().release}, {os.uname().machine}",
    }


def versions() -> dict[str, str]:
    """Of what cinderlite works with, as far as it is there."""
    found = {
        "Python": platform.python_version(),
        "Ceph": _first_line("ceph", "--version").removeprefix("ceph version "),
        "QEMU": _first_line("qemu-system-x86_64", "--version").removeprefix("QEMU emulator version "),
        "SQLAlchemy": sqlalchemy.__version__,
        "SQLite": sqlite3.sqlite_version,
    }
    return {name: version for name, version in found.items() if version}


def commit() -> str:
    """Which cinderlite this is; "unknown" where a release was unpacked."""
    changed = _first_line("git", "status", "--porcelain", "--", "cinderlite")
    name = _first_line("git", "describe", "--always")
    return f"{name} and changes" if changed else name or "unknown"


def _first_line(*command: str) -> str:
    """What a program says; "" if it is not there or refuses."""
    try:
        return run(list(command), timeout=30).partition("\n")[0].strip()
    except LabError:
        return ""
