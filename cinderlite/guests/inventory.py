# SPDX-License-Identifier: Apache-2.0
"""What files tell of the VMs: which sockets there are, and the owner file beside each. QEMU is not asked here.

`NAME.sock` is a VM's monitor. `NAME.json` beside it is written by whoever starts VMs::

    {"project_id": "…", "user_id": "…", "metadata": {"key": "value"}, "id": "the VM's UUID",
     "flavor": {"id": "…", "name": "…", "vcpus": 1, "ram": 512, "disk": 10}}

Only `project_id` must be there; `id` serves to show a VM whose QEMU cannot be asked. What a newcomer gets wrong: a
file that is missing, too big or nonsense is not an error. Its VM belongs to nobody then, which only administrators
see, and it must never hide the VMs beside it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from cinderlite import errors
from cinderlite.guests import Flavor

#: The most bytes that an owner file may have.
OWNER_MOST = 65536
#: The size of a VM whose owner file names none.
UNKNOWN = Flavor("0", "unknown", 0, 0, 0)

#: Changes when a VM is started anew behind the same path: inode and time of change of its socket.
Stamp = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Whose a VM is; `project_id` is empty for nobody's. `id` is "" when the file does not say it."""

    created: datetime.datetime
    id: str = ""
    project_id: str = ""
    user_id: str = ""
    flavor: Flavor = UNKNOWN
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(text: bytes, created: datetime.datetime) -> Owner:
    """What an owner file says. Raises ValueError if it cannot be understood."""
    try:
        said = json.loads(text)
        flavor = said.get("flavor") or {}
        return Owner(
            created=created,
            id=identity(said.get("id") or ""),
            project_id=_text(said["project_id"]),
            user_id=_text(said.get("user_id") or ""),
            flavor=Flavor(
                str(flavor.get("id", UNKNOWN.id)),
                str(flavor.get("name", UNKNOWN.name)),
                int(flavor.get("vcpus", 0)),
                int(flavor.get("ram", 0)),
                int(flavor.get("disk", 0)),
            ),
            metadata={key: str(value) for key, value in (said.get("metadata") or {}).items()},
        )
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not an owner file: {error}") from error


def identity(said: Any) -> str:
    """A VM's id as APIs write it; "" for one that QEMU was not given (all zeros), which would name many VMs."""
    if said == "":
        return ""
    found = uuid.UUID(_text(said))
    return str(found) if found.int else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def owner(socket: pathlib.Path) -> Owner:
    """The owner of the VM behind a socket."""
    file = socket.with_suffix(".json")
    created = _changed(file) or _changed(socket) or datetime.datetime.now(datetime.UTC)
    try:
        return parse(_read(file), created)
    except (OSError, ValueError):
        return Owner(created)


def _read(path: pathlib.Path) -> bytes:
    # Without O_NONBLOCK a pipe of that name would be waited for, and for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > OWNER_MOST:
            raise ValueError("not an owner file: not a plain file of a sensible size")
        return stream.read(OWNER_MOST)


def _changed(path: pathlib.Path) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    except OSError:
        return None


def stamp(socket: pathlib.Path) -> Stamp | None:
    """The mark of what is at a path now; None if there is no socket."""
    try:
        status = socket.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns) if stat.S_ISSOCK(status.st_mode) else None


def sockets(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, Stamp]]:
    """The monitors there are; none without the directory. Raises GuestUnreachable if it cannot be read."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".sock")
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.GuestUnreachable("", f"the directory of monitors cannot be read: {error.strerror}") from error
    for path in paths:
        found = stamp(path)
        if found is not None:
            yield path, found
