# SPDX-License-Identifier: Apache-2.0
"""An image that is held open is closed once, and not under a call that still uses it."""

from __future__ import annotations

import threading

import pytest

from cinderlite import errors
from cinderlite.ceph.cluster import HeldImage


def test_a_call_that_nobody_waits_for_keeps_the_image_open() -> None:
    closed = threading.Event()
    held = HeldImage("librbd's", lambda _: [], closed.set)
    with held.used() as image:
        held.close()
        assert image == "librbd's"
        assert not closed.wait(0.2)
    assert closed.wait(10)
    with pytest.raises(errors.CephUnavailable), held.used():
        pass
