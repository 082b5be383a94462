# SPDX-License-Identifier: Apache-2.0
"""What systemd is told: units that it understands, that hold the service in, and that name commands there are."""

from __future__ import annotations

import configparser
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from cinderlite import app
from cinderlite.cmd import manage
from conftest import configuration

UNITS = sorted((pathlib.Path(__file__).parent.parent.parent / "etc" / "systemd").iterdir())
SERVICES = [path for path in UNITS if path.suffix == ".service"]
WITH_SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def read(path: pathlib.Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text(encoding="utf-8"))
    return unit


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_is_held_in(path: pathlib.Path) -> None:
    service = read(path)["Service"]
    assert (service["User"], service["ProtectSystem"], service["NoNewPrivileges"]) == ("cinderlite", "strict", "yes")
    assert service["CapabilityBoundingSet"] == ""


def test_the_api_has_more_time_to_stop_than_it_takes(tmp_path: pathlib.Path) -> None:
    service = read(next(path for path in UNITS if path.name == "cinderlite-api.service"))["Service"]
    assert int(service["TimeoutStopSec"]) > configuration(tmp_path).graceful_shutdown_timeout
    assert service["KillMode"] == "mixed"


def test_the_audit_is_a_command_that_there_is() -> None:
    line = read(next(path for path in UNITS if path.name == "cinderlite-audit.service"))["Service"]["ExecStart"]
    program, *words = line.split()
    assert program.endswith("/cinderlite-manage")
    arguments = manage._parser().parse_args(words)
    assert (arguments.command, arguments.repair, arguments.json) == (manage._audit, False, True)


def test_the_service_does_not_start_on_tables_of_another_release(tmp_path: pathlib.Path) -> None:
    configuration(tmp_path)
    command = [sys.executable, "-m", "cinderlite.cmd.api", "--config-file", str(tmp_path / "cinderlite.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "cinderlite-manage db upgrade" in done.stderr) == (1, True), done.stderr


def test_uwsgi_has_threads_for_all_that_may_be_at_work_or_wait(tmp_path: pathlib.Path) -> None:
    conf = configuration(tmp_path)
    uwsgi = configparser.ConfigParser(interpolation=None)
    uwsgi.read(UNITS[0].parent.parent / "uwsgi.ini", encoding="utf-8")
    most = conf.api_threads + app.slow_threads(conf) + 2 * app.max_waiting(conf)
    assert int(uwsgi["uwsgi"]["threads"]) > most


@WITH_SYSTEMD
def test_systemd_understands_them(tmp_path: pathlib.Path) -> None:
    for path in UNITS:
        text = re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / path.name) for path in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not [line for line in done.stderr.splitlines() if "cinderlite" in line], done.stderr
    assert done.returncode == 0, done.stderr
