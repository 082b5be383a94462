# SPDX-License-Identifier: Apache-2.0
"""Owner files and the directory of monitors: what is believed, and that nothing odd hides the VMs beside it."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.guests import Flavor, inventory

ID = "0b6f3c1e-0000-4000-8000-00000000000a"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    # A socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as name:
        yield pathlib.Path(name)


def listen(path: pathlib.Path) -> None:
    """A socket file that nobody listens on, as a killed QEMU leaves it."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_everything_that_a_file_may_say() -> None:
    said = {
        "id": ID.upper(), "project_id": "p", "user_id": "u", "metadata": {"a": "b", "n": 1},
        "flavor": {"id": "7", "name": "small", "vcpus": 2, "ram": 512, "disk": 10},
    }  # fmt: skip
    found = inventory.parse(json.dumps(said).encode(), NOW)
    assert found == inventory.Owner(NOW, ID, "p", "u", Flavor("7", "small", 2, 512, 10), {"a": "b", "n": "1"})


def test_only_the_project_must_be_there() -> None:
    assert inventory.parse(b'{"project_id": "p"}', NOW) == inventory.Owner(NOW, project_id="p")
    empty = b'{"project_id": "p", "id": null, "user_id": null, "flavor": null, "metadata": null}'
    assert inventory.parse(empty, NOW) == inventory.Owner(NOW, project_id="p")


BROKEN: list[Any] = [
    b"", b"{", b"\xff\xfe", b"null", b"[]", b'"text"', b"{}", b'{"project_id": null}', b'{"project_id": ["p"]}',
    b'{"project_id": "p", "id": "not a uuid"}', b'{"project_id": "p", "id": 7}', b'{"project_id": "p", "flavor": 7}',
    b'{"project_id": "p", "flavor": {"ram": "much"}}', b'{"project_id": "p", "flavor": {"ram": 1e999}}',
    b'{"project_id": "p", "metadata": [1]}', b"[" * 60000,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_nobodys(text: bytes, directory: pathlib.Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's and ours
        inventory.parse(text, NOW)
    (directory / "vm.json").write_bytes(text)
    assert inventory.owner(directory / "vm.sock").project_id == ""


@pytest.mark.parametrize("kind", ["missing", "big", "pipe", "directory", "loop"])
def test_a_strange_file_is_nobodys_and_nobody_waits_for_it(kind: str, directory: pathlib.Path) -> None:
    file = directory / "vm.json"
    if kind == "big":
        file.write_text(
            json.dumps({"project_id": "p", "metadata": {"a": "x" * inventory.OWNER_MOST}}), encoding="ascii"
        )
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    assert inventory.owner(directory / "vm.sock").project_id == ""


@pytest.mark.parametrize(("said", "expected"), [(ID, ID), (ID.upper(), ID), ("", ""), ("0" * 32, "")])
def test_identity(said: str, expected: str) -> None:
    assert inventory.identity(said) == expected


def test_only_sockets_are_monitors(directory: pathlib.Path) -> None:
    for name in ("b.sock", "a.sock", "other"):
        listen(directory / name)
    (directory / "plain.sock").touch()
    (directory / "loop.sock").symlink_to(directory / "loop.sock")
    (directory / "nowhere.sock").symlink_to(directory / "nothing")
    (directory / "a.json").touch()
    assert [path.name for path, _ in inventory.machines(directory)] == ["a.sock", "b.sock"]


def test_an_owner_file_with_an_id_keeps_a_vm_without_a_socket(directory: pathlib.Path) -> None:
    kept, other = directory / "kept.json", directory / "other.json"
    kept.write_text(json.dumps({"id": ID, "project_id": "p"}), encoding="ascii")
    other.write_text('{"project_id": "p"}', encoding="ascii")
    [(path, off)] = inventory.machines(directory)
    assert (path.name, inventory.owner(path).id) == ("kept.sock", ID)
    listen(path)
    [(again, on)] = inventory.machines(directory)
    assert (again, on) == (path, inventory.stamp(path)) != (path, off)
    path.unlink()
    assert dict(inventory.machines(directory)) == {path: off}
    kept.unlink()
    assert list(inventory.machines(directory)) == []


def test_what_is_in_memory_only_is_known_for_that(directory: pathlib.Path) -> None:
    assert not inventory.is_volatile(directory)
    assert inventory.is_volatile(pathlib.Path("/dev/shm"))  # noqa: S108 - nothing is made there


def test_a_new_start_has_a_new_mark(directory: pathlib.Path) -> None:
    path = directory / "vm.sock"
    assert inventory.stamp(path) is None
    listen(path)
    before = inventory.stamp(path)
    assert before == inventory.stamp(path)
    path.rename(directory / "old")
    listen(path)
    assert inventory.stamp(path) != before


def test_no_directory_means_no_vms_and_no_right_to_read_is_said(directory: pathlib.Path) -> None:
    assert list(inventory.machines(directory / "none")) == []
    (directory / "file").touch()
    with pytest.raises(errors.GuestUnreachable, match="cannot be read"):
        list(inventory.machines(directory / "file"))
