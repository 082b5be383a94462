# SPDX-License-Identifier: Apache-2.0
"""When a VM with a monitor of ours counts as ended: what is proof of it, and what is none."""

from __future__ import annotations

import json
import pathlib
import socket
import tempfile
import uuid
from collections.abc import Iterator

import pytest

from cinderlite import errors
from cinderlite.guests import inventory
from cinderlite.guests.qmp import QmpHypervisor

ID = str(uuid.UUID(int=7))
#: Seconds; before this host was started.
LONG_AGO = 10.0**9


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as name:
        yield pathlib.Path(name)


@pytest.fixture
def hypervisor(directory: pathlib.Path) -> Iterator[QmpHypervisor]:
    made = QmpHypervisor(directory, connect_timeout=0.2, command_timeout=0.2, host="lab", locks=directory, refresh=0.0)
    yield made
    made.close()


def keep(directory: pathlib.Path, name: str = "vm") -> pathlib.Path:
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"id": ID, "project_id": "demo"}), encoding="ascii")
    return path


def test_an_owner_file_keeps_it_under_any_name(hypervisor: QmpHypervisor, directory: pathlib.Path) -> None:
    first = keep(directory)
    assert hypervisor.find(ID).server.status == "SHUTOFF"
    assert not hypervisor.ended(ID, 0.0)
    second = keep(directory, "other")
    first.unlink()
    assert not hypervisor.ended(ID, 0.0)
    second.unlink()
    assert hypervisor.ended(ID, 0.0)
    with pytest.raises(errors.ServerNotFound):
        hypervisor.find(ID)


def test_a_monitor_that_never_said_who_it_is_may_be_it(hypervisor: QmpHypervisor, directory: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(directory / "hung.sock"))
        hung.listen()
        assert not hypervisor.ended(ID, 0.0)
    assert hypervisor.ended(ID, 0.0)


def test_without_the_directory_nothing_is_known(hypervisor: QmpHypervisor) -> None:
    hypervisor.directory = hypervisor.directory / "not mounted"
    assert not hypervisor.ended(ID, 0.0)


def test_files_that_a_restart_of_the_host_removed_are_no_proof(
    hypervisor: QmpHypervisor, directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "is_volatile", lambda _directory: True)
    assert not hypervisor.ended(ID, LONG_AGO)
    assert hypervisor.ended(ID, 0.0)
    kept = keep(directory)
    assert not hypervisor.ended(ID, LONG_AGO)
    kept.unlink()
    assert hypervisor.ended(ID, LONG_AGO)


def test_the_last_one_of_another_host_ends_too(hypervisor: QmpHypervisor, directory: pathlib.Path) -> None:
    path = keep(directory)
    said = json.loads(path.read_text(encoding="ascii")) | {"monitor": "127.0.0.2:1"}
    path.write_text(json.dumps(said), encoding="ascii")
    assert hypervisor.find(ID).server.host == "127.0.0.2"
    path.unlink()
    assert "127.0.0.2" in hypervisor.hosts
    assert hypervisor.ended(ID, 0.0)
