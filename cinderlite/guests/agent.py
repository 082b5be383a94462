# SPDX-License-Identifier: Apache-2.0
"""The QEMU guest agent of one VM: a program inside the guest that freezes and thaws its file systems.

It is reached over a socket of its own beside the monitor's, one JSON line after the other. What a newcomer gets wrong:
the channel remembers. What was said to an agent that is slow, or not there yet, is still read by it later, and its
answer then meets the next client. So every connection begins with a synchronisation, which throws such answers away,
and a command without an answer may still be done: only a later answer tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cinderlite import errors
from cinderlite.guests import monitor

#: A byte that is in no JSON: the agent forgets what was sent before it, and begins its answer with it.
_SENTINEL = b"\xff"


class NoChannel(errors.GuestUnreachable):
    """Nobody listens: the VM has no channel for an agent, or does not run."""


class Agent:
    """An open connection to an agent that has just answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server_id: str) -> None:
        self._reader = reader
        self._writer = writer
        self._server_id = server_id

    async def synchronise(self, seconds: float) -> None:
        """Find out whether the agent is there, and throw away what it still had to say. Raises GuestTimeout."""
        number = secrets.randbits(31)
        async with self._answering("guest-sync-delimited", seconds):
            self._say("guest-sync-delimited", {"id": number}, before=_SENTINEL)
            while True:
                await self._reader.readuntil(_SENTINEL)
                if _parsed(await self._reader.readline()).get("return") == number:
                    return

    async def do(self, command: str, seconds: float) -> Any:
        """One command. Raises GuestRefused with the agent's words, GuestTimeout."""
        async with self._answering(command, seconds):
            self._say(command, {})
            answer = _parsed(await self._reader.readline())
        if "return" not in answer:
            said = answer.get("error")
            raise errors.GuestRefused(str(said.get("desc") if isinstance(said, dict) else "no sense in its answer"))
        return answer["return"]

    async def freeze(self, seconds: float) -> int:
        """Freeze the file systems; how many these were. Raises GuestRefused, GuestTimeout: some may be frozen then."""
        count = await self.do("guest-fsfreeze-freeze", seconds)
        if not isinstance(count, int):
            raise errors.GuestRefused("no sense in its answer")
        return count

    def _say(self, command: str, arguments: Mapping[str, Any], before: bytes = b"") -> None:
        line = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        self._writer.write(before + line.encode() + b"\n")

    @contextlib.asynccontextmanager
    async def _answering(self, command: str, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise errors.GuestTimeout(self._server_id, f"its agent has no answer to {command}") from error
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, OSError) as error:
            raise errors.GuestTimeout(self._server_id, f"the agent's channel broke in {command}") from error


def _parsed(line: bytes) -> dict[str, Any]:
    """What a line says. Raises ValueError, whatever a hostile guest sends."""
    try:
        said = json.loads(line)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(said, dict):
        raise ValueError("an object was expected")  # noqa: TRY004 - what a line of nonsense is
    return said


@contextlib.asynccontextmanager
async def connect(path: pathlib.Path, server_id: str, lock: pathlib.Path, seconds: float) -> AsyncIterator[Agent]:
    """The agent behind a socket, synchronised. Raises NoChannel, GuestUnreachable, GuestTimeout.

    `lock` is a file that the processes of this host share: the channel takes one client at a time.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(monitor.Turn(lock).take(seconds))
            async with asyncio.timeout(seconds):
                connection = await monitor.opened(path)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise NoChannel(server_id, "there is no channel to an agent") from error
        except (TimeoutError, OSError) as error:
            raise errors.GuestUnreachable(server_id, "somebody else talks to its agent") from error
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        stack.push_async_callback(_part, writer)
        agent = Agent(reader, writer, server_id)
        await agent.synchronise(seconds)
        yield agent


async def _part(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, whether or not the agent has read what was said."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
