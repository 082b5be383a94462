# SPDX-License-Identifier: Apache-2.0
"""Starting, finding and ending the programs of the lab; every wait has an end, every kill hits only our own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

#: First line of a Python server that the suite starts: it ends with its parent, however that ends (PR_SET_PDEATHSIG).
WITH_ITS_PARENT = "import ctypes; ctypes.CDLL(None).prctl(1, 9)"
#: Where servers get theirs: below those that Linux gives to connections (from 32768 on), one of which could have taken
#: a port before the server that it was found for has it, or while that one is down.
_PORTS = range(20_000, 30_000)
#: How many times as long as it is said is waited, before that counts as in vain: other machines are slower or busy.
PATIENCE = 3


class LabError(Exception):
    """Something in the lab did not work; the text is a sentence for whoever runs it."""


def run(
    arguments: Sequence[str | pathlib.Path],
    *,
    timeout: float = 60,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: pathlib.Path | None = None,
) -> str:
    """Run a program to its end and return what it printed. Raises LabError with its complaint."""
    words = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE * timeout,
            check=False,
            env=env,
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(words[:4])} did not end within {PATIENCE * timeout:g} s") from error
    if done.returncode != 0:
        raise LabError(
            f"{' '.join(words[:6])} failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


def wait(condition: Callable[[], bool], *, timeout: float, what: str) -> None:
    """Wait until `condition` holds. Raises LabError, which names `what` was waited for."""
    deadline = time.monotonic() + PATIENCE * timeout
    pause = 0.02
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {PATIENCE * timeout:g} s in vain for {what}")
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)


@contextlib.contextmanager
def turn(path: pathlib.Path, *, timeout: float) -> Iterator[None]:
    """Wait until nobody else has the turn of a file, which is made if need be, and have it. Raises LabError."""
    # To read is enough: who may not write to the checkout has turns, too.
    file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def taken() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        wait(taken, timeout=timeout, what=f"the turn of {path}")
        yield
    finally:
        os.close(file)


def pid_in(path: pathlib.Path, mark: str) -> int | None:
    """The process that a pid file names, if it lives and its command line contains `mark`; None otherwise.

    A pid that was left behind may belong to somebody else by now: the mark tells.
    """
    try:
        pid = int(path.read_text(encoding="ascii").strip())
    except (FileNotFoundError, ValueError):
        return None
    return pid if lives(pid, mark) else None


def lives(pid: int, mark: str) -> bool:
    """Whether the process runs and its command line contains `mark`."""
    try:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return False
    now = _stat(pid)
    return mark in command and now is not None and now.state != "Z"


class _Stat(NamedTuple):
    """What /proc says of a process: its state (Z: it has ended, and nobody asked how) and when it began, in ticks."""

    state: str
    began: int


def _stat(pid: int) -> _Stat | None:
    try:
        told = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = told.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[19]))


def _gone(pid: int, since: _Stat) -> bool:
    """Whether a process has let go of all that it held: its files, its locks, its ports.

    One that was killed has no command line for a while, and holds them still; its first thread may have ended, and
    others not.
    """
    now = _stat(pid)
    if now is None or now.began != since.began:
        return True
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return now.state == "Z" and len(list(pathlib.Path(f"/proc/{pid}/task").iterdir())) < 2
    return True


def end(path: pathlib.Path, mark: str, *, timeout: float = 7, kill: bool = False) -> bool:
    """End the process behind a pid file, by SIGKILL if it must be; True if there was one."""
    pid = pid_in(path, mark)
    since = None if pid is None else _stat(pid)
    if pid is None or since is None:
        path.unlink(missing_ok=True)
        return False
    with contextlib.suppress(ProcessLookupError):
        # A process that a fault test stopped would not see TERM.
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
    # The pid itself is watched, not the file: Ceph and QEMU remove theirs before they are gone.
    try:
        wait(lambda: _gone(pid, since), timeout=timeout, what=f"process {pid} to end")
    except LabError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait(lambda: _gone(pid, since), timeout=timeout, what=f"process {pid} to be killed")
    path.unlink(missing_ok=True)
    return True


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for _ in range(200):
        first = _PORTS.start + secrets.randbelow(len(_PORTS) - count)
        if all(port_is_free(port) for port in range(first, first + count)):
            return first
    raise LabError(f"found no {count} free ports in a row")


def port_is_free(port: int) -> bool:
    """Whether a loopback port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
