# SPDX-License-Identifier: Apache-2.0
"""One connection to one QEMU monitor: made, used, and ended whatever state it is in; QEMU's errors become ours.

Nothing here knows of disks. What a newcomer gets wrong: the monitor serves one client, so a connection that was not
really ended locks everybody out; and the library's errors and logs carry what was sent, so neither is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pathlib
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError, Runstate

from cinderlite import errors, failpoints, private
from cinderlite.guests import disks, inventory, remote
from cinderlite.guests.remote import Remote

#: Seconds that a good-bye may take, and finding out why a connection broke.
CLOSE_MOST = 1.0

# The library writes every message to its log at DEBUG, the cephx key in it; and what goes wrong is raised to us
# anyway. This logger hangs on no tree, so that no configuration can turn it on.
_SILENT = logging.Logger("qmp", logging.CRITICAL + 1)  # noqa: LOG001 - on purpose, see above

#: Seconds between two looks whether another process has finished with a monitor.
TURN_AGAIN = 0.02

#: A socket of this host, or a monitor on another one.
Where = pathlib.Path | Remote

#: A command that changes nothing, with its arguments.
Question = tuple[str, Mapping[str, Any]]


class _Client(QMPClient):
    def __init__(self) -> None:
        super().__init__()
        self.logger = _SILENT

    async def _recv(self) -> Message:
        """A message, and before the session stands no event: QEMU can send one ahead of its consent to the session."""
        message = await super()._recv()
        while self.runstate is not Runstate.RUNNING and "event" in message:
            message = await super()._recv()
        return message


class Refused(errors.GuestRefused):
    """QEMU's answer that it will not."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text

    def _says(self, *words: str) -> bool:
        return any(word in self.text for word in words)

    @property
    def says_missing(self) -> bool:
        """Whether the thing is not there (any more)."""
        return self.kind == "DeviceNotFound" or self._says("Failed to find node", "not found", "does not exist")

    @property
    def says_unread(self) -> bool:
        """Whether QEMU cannot read the file that it was told to."""
        return self._says("error reading conf file")

    @property
    def says_duplicate(self) -> bool:
        """Whether a thing of that name is there already."""
        return self._says("uplicate")

    @property
    def says_pending(self) -> bool:
        """Whether an unplug is under way already."""
        return self._says(*disks.UNPLUGS)

    @property
    def says_migrating(self) -> bool:
        """Whether devices must stay as they are, since the VM is on its way to another QEMU."""
        return self._says("while migrating")

    @property
    def says_used(self) -> bool:
        """Whether the node still has a user."""
        return self._says("is in use", "in use by")

    @property
    def says_elsewhere(self) -> bool:
        """Whether this place takes no disk (any more), but another one may."""
        return self._says("hotplug", "Hot-plug", "not available for", "no slot/function available", "no free target")


class NoGreeting(errors.GuestUnreachable):
    """The monitor is silent: QEMU hangs, or somebody else has it."""


class NoAnswer(errors.GuestTimeout):
    """It fell silent in the middle."""


class Monitor:
    """An open connection to one monitor."""

    def __init__(self, client: QMPClient, where: Where, server_id: str, timeout: float) -> None:
        self.client = client
        self.where = where
        self.server_id = server_id
        self.timeout = timeout

    async def do(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """One command. Raises GuestRefused with QEMU's words, GuestTimeout, GuestGone."""
        said = dict(arguments or {})
        if failpoints.watch is not None:
            failpoints.watch(f"qmp.{command}")
        try:
            async with asyncio.timeout(self.timeout):
                return await self.client.execute(command, said)
        except TimeoutError as error:
            raise NoAnswer(self.server_id, f"{command} is without an answer") from error
        except ExecuteError as error:
            # Not chained: the library's error carries what was sent, which may be a key.
            raise Refused(error.error_class, _without_key(str(error), said)) from None
        except (QMPError, EOFError, OSError):
            if await _ended(self.where):
                raise errors.GuestGone(self.server_id) from None
            raise errors.GuestTimeout(self.server_id, f"the connection broke in {command}") from None

    async def ask(self, *questions: Question) -> list[Any]:
        """Several commands that change nothing, sent together: a busy QEMU wakes up once for them."""
        return list(await asyncio.gather(*(self.do(command, arguments) for command, arguments in questions)))

    async def ask_guest(self, *questions: Question) -> list[Any]:
        """The same, if it is still the VM that was meant who answers. Raises GuestGone otherwise."""
        who, *answers = await self.ask(("query-uuid", {}), *questions)
        if inventory.identity(who["UUID"]) != self.server_id:
            raise errors.GuestGone(self.server_id)
        return answers

    async def try_(self, command: str, arguments: Mapping[str, Any]) -> None:
        """A command that may find nothing to do."""
        try:
            await self.do(command, arguments)
        except Refused as error:
            if not error.says_missing:
                raise


class Turn:
    """Whose turn at a monitor it is: one task's, in one of the processes of this host that share the lock file.

    The monitor itself would let the others wait without a word, as a hung one does. The kernel lets go of the file
    when a process dies. One that root makes, by `cinderlite-manage`, is the service's all the same.
    """

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self._tasks = asyncio.Lock()

    @property
    def taken(self) -> bool:
        """Whether somebody is at it now."""
        if self._tasks.locked():
            return True
        with self._open() as descriptor:
            # Shared, so that two who only look do not see each other.
            return not _lock(descriptor, fcntl.LOCK_SH)

    @contextlib.asynccontextmanager
    async def take(self, seconds: float) -> AsyncIterator[None]:
        """Wait for it and hold it. Raises TimeoutError."""
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(seconds):
                await stack.enter_async_context(self._tasks)
                descriptor = stack.enter_context(self._open())
                # Of a lock that another process holds the kernel tells nothing.
                while not _lock(descriptor, fcntl.LOCK_EX):  # noqa: ASYNC110
                    await asyncio.sleep(TURN_AGAIN)
            yield

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            private.hand_over(self._file)
            yield descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.asynccontextmanager
async def connect(
    where: Where, server_id: str, connect_timeout: float, command_timeout: float
) -> AsyncIterator[Monitor]:
    """The monitor at a place, for as long as it is needed. Raises GuestGone, GuestUnreachable."""
    async with contextlib.AsyncExitStack() as stack:
        client = _Client()
        try:
            async with asyncio.timeout(connect_timeout):
                connection = await opened(where)
                stack.push_async_callback(_part, client, connection)
                await client.connect(connection)
        except TimeoutError as error:
            raise NoGreeting(server_id, "no greeting in time") from error
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise errors.GuestGone(server_id) from error
        except (ConnectError, OSError) as error:
            if await _ended(where):
                raise errors.GuestGone(server_id) from error
            raise errors.GuestUnreachable(server_id, str(error)) from error
        yield Monitor(client, where, server_id, command_timeout)


async def opened(where: Where) -> socket.socket:
    """A connection to a monitor. Raises OSError; waits for room in its queue, so give it a time-out."""
    return await remote.opened(where) if isinstance(where, Remote) else await _opened_here(where)


async def _opened_here(path: pathlib.Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        while True:
            try:
                # On a local socket this is done at once or not at all; asyncio's own would take "not" for "soon".
                connection.connect(str(path))
            except BlockingIOError:
                await asyncio.sleep(0.02)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


async def listens(where: Where) -> bool:
    """Whether anybody does, or may, found out at once."""
    try:
        async with asyncio.timeout(CLOSE_MOST / 10):
            connection = await opened(where)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except (TimeoutError, OSError):
        return True
    connection.close()
    return True


async def _part(client: QMPClient, connection: socket.socket) -> None:
    """End a connection whatever state it is in: the monitor serves nobody else before that."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    # A client that gave up on a command would wait for its answer here.
    with contextlib.suppress(QMPError, TimeoutError, OSError, EOFError):
        async with asyncio.timeout(CLOSE_MOST):
            await client.disconnect()
    connection.close()


async def _ended(where: Where) -> bool:
    """Whether nobody listens there any more; a process that is just ending is given a moment."""
    deadline = time.monotonic() + CLOSE_MOST
    while time.monotonic() < deadline:
        try:
            async with asyncio.timeout(CLOSE_MOST):
                connection = await opened(where)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (TimeoutError, OSError):
            return False
        connection.close()
        await asyncio.sleep(0.05)
    return False


def _without_key(text: str, arguments: Mapping[str, Any]) -> str:
    """QEMU's words without the secret that they may repeat."""
    key = arguments.get("data")
    return text.replace(key, "***") if isinstance(key, str) and key else text
