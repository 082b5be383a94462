# SPDX-License-Identifier: Apache-2.0
"""What a guest agent may answer, or not, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.guests import agent

#: What an agent has to say to a command.
Answers = Callable[[dict[str, Any]], bytes]


def good(said: dict[str, Any]) -> bytes:
    """As qemu-ga answers."""
    if said["execute"] == "guest-sync-delimited":
        return b"\xff" + json.dumps({"return": said["arguments"]["id"]}).encode() + b"\n"
    return b'{"return": 3}\n'


def after(first: bytes) -> Answers:
    """Something comes first that was meant for an earlier client."""
    return lambda said: first + good(said) if said["execute"] == "guest-sync-delimited" else good(said)


def to_command(answer: bytes) -> Answers:
    """Good at synchronising, and this to a command."""
    return lambda said: good(said) if said["execute"] == "guest-sync-delimited" else answer


async def talk(tmp_path: pathlib.Path, answers: Answers, work: Callable[[agent.Agent], Awaitable[Any]]) -> Any:
    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.Event())
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(answers(json.loads(line.lstrip(b"\xff"))))
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended[-1].set()

    path = tmp_path / "agent"
    server = await asyncio.start_unix_server(serve, path)
    try:
        async with agent.connect(path, "vm", tmp_path / "lock", 0.5) as there:
            return await work(there)
    finally:
        server.close()
        for one in ended:
            await one.wait()


def freeze(tmp_path: pathlib.Path, answers: Answers) -> Any:
    return asyncio.run(talk(tmp_path, answers, lambda there: there.freeze(0.3)))


def test_a_command_is_answered(tmp_path: pathlib.Path) -> None:
    assert freeze(tmp_path, good) == 3


@pytest.mark.parametrize(
    "stale",
    [b'{"return": 7}\n', b'{"error": {"desc": "late"}}\n', b"half a li", b'\xff{"return": 1}\n', b'\xff{"retu\xff[]\n'],
)
def test_what_was_meant_for_others_is_thrown_away(tmp_path: pathlib.Path, stale: bytes) -> None:
    if stale.endswith(b"[]\n"):
        with pytest.raises(errors.GuestTimeout, match="broke"):
            freeze(tmp_path, after(stale))
    else:
        assert freeze(tmp_path, after(stale)) == 3


def test_a_refusal_is_passed_on(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.GuestRefused, match="disabled"):
        freeze(tmp_path, to_command(b'{"error": {"class": "CommandNotFound", "desc": "it is disabled"}}\n'))


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"[]\n", b'{"return"\n', b"x" * 100000, b"[" * 50000 + b"\n"])
def test_an_answer_without_sense_leaves_it_open_what_was_done(tmp_path: pathlib.Path, answer: bytes) -> None:
    with pytest.raises(errors.GuestTimeout):
        freeze(tmp_path, to_command(answer))


@pytest.mark.parametrize("answer", [b"{}\n", b'{"error": 1}\n', b'{"return": null}\n', b'{"return": "x"}\n'])
def test_neither_a_result_nor_an_error_is_a_refusal(tmp_path: pathlib.Path, answer: bytes) -> None:
    with pytest.raises(errors.GuestRefused):
        freeze(tmp_path, to_command(answer))


def test_one_that_says_nothing_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.GuestTimeout, match="guest-sync-delimited"):
        freeze(tmp_path, lambda _said: b"")


def test_where_nobody_listens_there_is_no_channel(tmp_path: pathlib.Path) -> None:
    async def connect() -> None:
        async with agent.connect(tmp_path / "none", "vm", tmp_path / "lock", 0.5):
            pass

    with pytest.raises(agent.NoChannel):
        asyncio.run(connect())


def test_one_client_at_a_time(tmp_path: pathlib.Path) -> None:
    async def again(_there: agent.Agent) -> None:
        async with agent.connect(tmp_path / "agent", "vm", tmp_path / "lock", 0.1):
            pass

    with pytest.raises(errors.GuestUnreachable, match="somebody else"):
        asyncio.run(talk(tmp_path, good, again))
