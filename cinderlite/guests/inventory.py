# SPDX-License-Identifier: Apache-2.0
"""What files tell of the VMs: which sockets there are, and the owner file beside each. QEMU is not asked here.

`NAME.sock` is a VM's monitor. `NAME.json` beside it is written by whoever starts VMs, and removed by him with the VM::

    {"project_id": "…", "user_id": "…", "metadata": {"key": "value"}, "id": "the VM's UUID",
     "flavor": {"id": "…", "name": "…", "vcpus": 1, "ram": 512, "disk": 10},
     "monitor": "host7.example.org:4444"}

`monitor` is where the monitor of a VM on another host is (`remote`), which has no `NAME.sock`. Only `project_id` must
be there. With `id` the VM is *kept*: it is there without a process too, shut off, until the file is removed; without,
it ends with its process. What a newcomer gets wrong: a file that is missing, too big or nonsense is not an error. Its
VM belongs to nobody then, which only administrators see, and it must never hide the VMs beside it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cinderlite import errors
from cinderlite.guests import Flavor

#: The most bytes that an owner file may have.
OWNER_MOST = 65536
#: The size of a VM whose owner file names none.
UNKNOWN = Flavor("0", "unknown", 0, 0, 0)

#: Changes when a VM is started anew behind the same path: inode and time of change of its socket, or its owner file.
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
    #: "host:port" of a monitor that is not beside the file.
    monitor: str = ""


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
            monitor=_text(said.get("monitor") or ""),
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
    """The mark of what is at a path now: a socket, or else the owner file beside it; None if there is neither."""
    return _mark(socket, stat.S_ISSOCK) or _mark(socket.with_suffix(".json"), stat.S_ISREG)


def _mark(path: pathlib.Path, kind: Callable[[int], bool]) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns) if kind(status.st_mode) else None


def machines(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, Stamp]]:
    """The monitors there are, and where those of VMs will be that are kept and have none now.

    None without the directory. Raises GuestUnreachable if it cannot be read.
    """
    try:
        paths = sorted({path.with_suffix(".sock") for path in directory.iterdir() if path.suffix in (".sock", ".json")})
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.GuestUnreachable("", f"the directory of monitors cannot be read: {error.strerror}") from error
    for path in paths:
        found = stamp(path)
        if found is not None and (is_here(path) or owner(path).id or owner(path).monitor):
            yield path, found


def is_here(socket: pathlib.Path) -> bool:
    """Whether there is a socket at a path."""
    return _mark(socket, stat.S_ISSOCK) is not None


def is_volatile(directory: pathlib.Path) -> bool:
    """Whether what is in a directory does not outlive the machine's next start, as in /run."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2] == number:
            return system.split()[0] in ("tmpfs", "ramfs")
    return False
