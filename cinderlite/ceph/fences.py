# SPDX-License-Identifier: Apache-2.0
"""Fences: clients that Ceph lets write nothing more, because nobody can ask them to stop.

A client is one opener: QEMU has one for each rbd node, and their addresses differ in what stands behind the slash. What
a newcomer gets wrong: the monitors' word is not enough. An OSD that has not heard it yet would still take a write, so
every one that may hold a part of the pool is made to answer with the cluster's present map before a fence stands.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import Any

from cinderlite import errors
from cinderlite.ceph import checkup

#: Objects asked for, for each OSD: with so many none is left out, but by a chance of less than one in a million.
_OBJECTS_FOR_EACH = 16


def put_up(rados: Any, ioctx: Any, addresses: Collection[str], seconds: int) -> None:
    """Have no OSD of the pool take anything from these addresses any more. Raises CephTimeout: do it again."""
    for address in sorted(addresses):
        rados.blocklist_add(address, seconds)  # Returns when we have the map that says so, and all we send names it.
    _ask_every_osd(rados, ioctx)


def _ask_every_osd(rados: Any, ioctx: Any) -> None:
    """Have every OSD with a part of the pool answer; each gets the map that we have before it does."""
    count = int(checkup.ask(rados, "osd stat")["num_osds"]) * _OBJECTS_FOR_EACH
    asked = [ioctx.aio_stat(f"cinderlite-fence-{number}", lambda *_answer: None) for number in range(count)]
    for one in asked:
        one.wait_for_complete_and_cb()
    if any(one.get_return_value() not in (0, -errno.ENOENT) for one in asked):
        codes = sorted({one.get_return_value() for one in asked} - {0, -errno.ENOENT})
        reason = "; ".join(os.strerror(-code) for code in codes)
        raise errors.CephTimeout(f"not every OSD knows the fence yet: {reason}")


def standing(rados: Any) -> frozenset[str]:
    """The addresses that are fenced now."""
    # `osd blocklist ls` answers two JSON texts in a row, the second one for ranges.
    return frozenset(checkup.ask(rados, "osd dump")["blocklist"])
