# SPDX-License-Identifier: Apache-2.0
"""How a disk is to be plugged in, from a type's extra specs and a server's metadata."""

from __future__ import annotations

import pytest

from cinderlite import errors
from cinderlite.core import tuning
from cinderlite.guests import Tuning

FULL = {
    "cinderlite:bus": "virtio-scsi", "cinderlite:iothread": "true", "cinderlite:queues": "4",
    "cinderlite:cache": "writeback", "cinderlite:discard": "ignore", "cinderlite:detect_zeroes": "on",
}  # fmt: skip


def test_nothing_said_is_the_default_and_every_key_counts() -> None:
    assert tuning.combined({"multiattach": "<is> True"}, {"role": "db"}, shared=False) == Tuning()
    assert tuning.combined(FULL, {}, shared=False) == Tuning("virtio-scsi", True, 4, "writeback", "ignore", "on")
    assert tuning.combined({}, FULL, shared=False) == tuning.combined(FULL, {}, shared=False)
    tuning.refuse_flawed(FULL)


def test_the_server_knows_better_unless_it_says_nonsense() -> None:
    said = {"cinderlite:bus": "virtio-blk", "cinderlite:queues": "many", "cinderlite:cache": ""}
    assert tuning.combined(FULL, said, shared=False) == Tuning("virtio-blk", True, 4, "writeback", "ignore", "on")


def test_what_would_harm_or_be_refused_by_qemu_is_never_asked_for() -> None:
    assert tuning.combined(FULL, {}, shared=True).cache == "none"
    both = {"cinderlite:discard": "ignore", "cinderlite:detect_zeroes": "unmap"}
    assert tuning.combined(both, {}, shared=False).detect_zeroes == "on"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("bus", "ide"), ("bus", ""), ("iothread", "<is> True"), ("queues", "0"), ("queues", "65"), ("queues", "²"),
        ("cache", "unsafe"), ("discard", "on"), ("detect_zeroes", "yes"), ("color", "red"), ("", "x"),
    ],
)  # fmt: skip
def test_a_slip_in_an_extra_spec_is_refused(key: str, text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="cinderlite:"):
        tuning.refuse_flawed({"multiattach": "<is> True", f"cinderlite:{key}": text})
