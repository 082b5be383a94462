# SPDX-License-Identifier: Apache-2.0
"""How a disk is plugged in where there is a choice: what a volume's type asks for, and what its server can take.

Both say so by the same keys, the type in its extra specs and the server in its metadata::

    cinderlite:bus = virtio-blk | virtio-scsi      cinderlite:cache = none | writeback | writethrough
    cinderlite:iothread = true | false             cinderlite:discard = unmap | ignore
    cinderlite:queues = 1 … 64                     cinderlite:detect_zeroes = off | on | unmap

Of two that say different things the server is right: it knows what its operating system has drivers for. What a
newcomer gets wrong: a nonsensical extra spec is refused when it is set, nonsense in a server's metadata is passed over:
a slip there must not take a disk away from a server that was only restarted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.db import models
from cinderlite.guests import BUSES, Tuning

PREFIX = "cinderlite:"
#: More queues than that a virtio-blk device need not have; each takes memory of the guest.
MOST_QUEUES = 64


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return read


def _boolean(text: str) -> bool:
    return _one_of("true", "false")(text) == "true"


def _queues(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_QUEUES:
        raise ValueError(f"a number from 1 to {MOST_QUEUES}")
    return int(text)


#: What can be said: how it is read. A reader raises ValueError with what it had to be.
_READERS: dict[str, Callable[[str], Any]] = {
    "bus": _one_of(*BUSES),
    "iothread": _boolean,
    "queues": _queues,
    "cache": _one_of("none", "writeback", "writethrough"),
    "discard": _one_of("unmap", "ignore"),
    "detect_zeroes": _one_of("off", "on", "unmap"),
}


def refuse_flawed(specs: Mapping[str, str]) -> None:
    """Raise InvalidInput for a key of ours that is none, or has a value that means nothing."""
    for key, text in specs.items():
        if not key.startswith(PREFIX):
            continue
        reader = _READERS.get(key.removeprefix(PREFIX))
        if reader is None:
            raise errors.InvalidInput(f"{key[:255]} is none of {', '.join(PREFIX + name for name in _READERS)}")
        try:
            reader(text)
        except ValueError as error:
            raise errors.InvalidInput(f"{key} must be {error}") from error


def of_disk(session: Session, volume: models.Volume, metadata: Mapping[str, str]) -> Tuning:
    """How a volume is plugged into a server with that metadata."""
    table = models.ExtraSpec
    ours = select(table.key, table.value).where(
        table.volume_type_id == volume.volume_type_id, table.key.startswith(PREFIX, autoescape=True)
    )
    return combined(dict(session.execute(ours).all()), metadata, shared=volume.multiattach)


def combined(specs: Mapping[str, str], metadata: Mapping[str, str], *, shared: bool) -> Tuning:
    """The same from a type's extra specs; a volume for several servers is never cached."""
    found = Tuning(**(_read(specs) | _read(metadata)))
    if shared:
        found = dataclasses.replace(found, cache="none")
    if found.detect_zeroes == "unmap" and found.discard == "ignore":
        # QEMU refuses zeros to be trimmed where nothing is.
        found = dataclasses.replace(found, detect_zeroes="on")
    return found


def _read(said: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, reader in _READERS.items():
        try:
            found[name] = reader(said[PREFIX + name])
        except (KeyError, ValueError):
            continue
    return found
