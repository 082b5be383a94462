# SPDX-License-Identifier: Apache-2.0
"""Monitors of VMs on other hosts: over TCP, and only with TLS and certificates on both sides.

A monitor is all power over its VM, and keys of Ceph are said to it. So there is no way here to speak to one in the
clear, or to one whose certificate was not signed for that name. What a newcomer gets wrong: the rest of the code wants
a plain socket, which it can end in any state; it gets one end of a pair, and the other one is carried over TLS here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
import ssl
from typing import Any

from cinderlite import errors

#: As owner files write it: a name or an IPv4 address, or an IPv6 address in brackets, and a port.
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")

_CARRYING: set[asyncio.Task[Any]] = set()


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """Where such a monitor is, and by which certificates it is spoken to."""

    host: str
    port: int
    context: ssl.SSLContext = dataclasses.field(repr=False)


def parse(text: str) -> tuple[str, int]:
    """Host and port of "host:port". Raises ValueError."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[3]) < 65536:
        raise ValueError(f"not the address of a monitor: {text}")
    return found[1] or found[2], int(found[3])


def context(authorities: str, certificate: str, key: str) -> ssl.SSLContext:
    """What we show and whom we believe, from files. Raises CinderliteError with what is wrong."""
    try:
        made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authorities)
        made.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise errors.CinderliteError(f"qmp_tls_ca, qmp_tls_cert and qmp_tls_key cannot be used: {error}") from error
    return made


async def opened(remote: Remote) -> socket.socket:
    """A connection to a monitor. Raises OSError, as ConnectionRefusedError if nobody listens there."""
    reader, writer = await asyncio.open_connection(remote.host, remote.port, ssl=remote.context)
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    task = asyncio.get_running_loop().create_task(_carry(reader, writer, far))
    _CARRYING.add(task)
    task.add_done_callback(_CARRYING.discard)
    return near


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: socket.socket) -> None:
    """Pass on what either side says, until one of them ends."""
    loop = asyncio.get_running_loop()

    async def out() -> None:
        while said := await loop.sock_recv(far, 65536):
            for byte in said:
                # A monitor takes a byte at a time. What QEMU 7.2 has decrypted beyond that it leaves until more comes,
                # for which both would wait; so each byte is a record of its own.
                writer.write(bytes((byte,)))
            await writer.drain()

    async def back() -> None:
        while said := await reader.read(65536):
            await loop.sock_sendall(far, said)

    ways = [loop.create_task(out()), loop.create_task(back())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)
        far.close()
        writer.transport.abort()  # A good-bye would wait for a monitor that hangs.
