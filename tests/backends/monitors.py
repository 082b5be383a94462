# SPDX-License-Identifier: Apache-2.0
"""Many monitors without VMs: sockets in this process that say as little as QEMU must.

What QEMU really does is for the contract; these are for how many there are, and who of them is asked.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import threading
import uuid
from collections.abc import AsyncIterator
from typing import Any

ANSWERS: dict[str, Any] = {
    "query-status": {"status": "running"}, "query-pci": [], "query-blockstats": [], "query-jobs": [],
    "qom-list": [{"name": "scsi0", "type": "child<virtio-scsi-pci>"}], "qom-get": "pc-q35-7.2-machine",
}  # fmt: skip


class Peer:
    """One monitor.

    `silent` greets nobody; `deaf` greets, and leaves some commands without an answer; `hasty` tells of something that
    happens before it answers the first command, as QEMU does when it happens just then.
    """

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.id = str(uuid.UUID(int=number + 1))
        self.path = crowd.directory / f"vm{number}.sock"
        self.silent = self.hasty = False
        self.deaf: frozenset[str] = frozenset()
        self.connections = 0
        self.said: list[str] = []

    def write_owner(self, project: str = "p") -> None:
        """Say beside the socket whose server it is."""
        text = json.dumps({"id": self.id, "project_id": project})
        self.path.with_suffix(".json").write_text(text, encoding="ascii")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on one connection until the other side ends it."""
        self.connections += 1
        self.crowd.now += 1
        self.crowd.peak = max(self.crowd.peak, self.crowd.now)
        try:
            await self._answer(reader, writer)
        except ConnectionError:
            pass  # Who asked has gone, as one does that runs into a time-out.
        finally:
            self.crowd.now -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.silent:
            await reader.read()
        else:
            await self._tell(writer, {"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}})
            async for said in self._heard(reader):
                self.said.append(said["execute"])
                if self.hasty and said["execute"] == "qmp_capabilities":
                    moment = {"seconds": 1, "microseconds": 2}
                    await self._tell(writer, {"event": "JOB_STATUS_CHANGE", "data": {}, "timestamp": moment})
                if said["execute"] not in self.deaf:
                    named = {"query-uuid": {"UUID": self.id}, "query-name": {"name": self.path.stem}}
                    found = (ANSWERS | named).get(said["execute"], {})
                    await self._tell(writer, {"return": found} | {key: said[key] for key in ("id",) if key in said})

    @staticmethod
    async def _heard(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        """What is said: one JSON text after the other, with nothing in between."""
        text = ""
        while part := await reader.read(65536):
            text += part.decode()
            while text:
                try:
                    said, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                yield said

    @staticmethod
    async def _tell(writer: asyncio.StreamWriter, words: Any) -> None:
        writer.write(json.dumps(words).encode() + b"\r\n")
        await writer.drain()


class Crowd:
    """All of them, on a loop in a thread of its own."""

    def __init__(self, directory: pathlib.Path, many: int) -> None:
        self.directory = directory
        self.now = self.peak = 0
        self.peers = [Peer(self, number) for number in range(many)]
        self.servers: list[asyncio.Server] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        """Listen on all sockets."""
        self.thread.start()

        async def listen() -> None:
            self.servers = [await asyncio.start_unix_server(peer.serve, str(peer.path)) for peer in self.peers]

        asyncio.run_coroutine_threadsafe(listen(), self.loop).result(20)

    def stop(self) -> None:
        """Listen on none any more."""

        async def end() -> None:
            for server in self.servers:
                server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def forget(self) -> None:
        """Count and remember from now on."""
        self.peak = self.now
        for peer in self.peers:
            peer.connections, peer.said = 0, []

    def asked(self) -> set[str]:
        """Who was connected to since."""
        return {peer.id for peer in self.peers if peer.connections}
