# SPDX-License-Identifier: Apache-2.0
"""Threads stay on one processor, and what cannot be moved goes on where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cinderlite import affinity


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """One of its own, for a thread hands on where it may run."""
    with ThreadPoolExecutor(1) as made:
        yield made


def test_a_thread_that_stays_on_one_may_go_anywhere_for_a_while(thread: ThreadPoolExecutor) -> None:
    def moves() -> list[set[int]]:
        affinity.stay_on(min(affinity.GIVEN))
        before = os.sched_getaffinity(0)
        with affinity.anywhere():
            meanwhile = os.sched_getaffinity(0)
        return [before, meanwhile, os.sched_getaffinity(0)]

    alone = {min(affinity.GIVEN)}
    assert thread.submit(moves).result() == [alone, set(affinity.GIVEN), alone]


def test_who_cannot_be_moved_goes_on(thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = 1023  # As when all that were given at the start have been taken away since.

    def moves() -> set[int]:
        affinity.stay_on(missing)
        with affinity.anywhere():
            return os.sched_getaffinity(0)

    given = set(affinity.GIVEN)
    monkeypatch.setattr(affinity, "GIVEN", frozenset({missing}))
    assert thread.submit(moves).result() == given


def test_the_one_that_fewest_stay_on_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "GIVEN", frozenset({2, 3, 5}))
    assert affinity.choose([2, 3, None, 3]) == 5
    assert affinity.choose([2, 5, 5, 3, 3]) == 2
    monkeypatch.setattr(affinity, "GIVEN", frozenset({2}))
    assert affinity.choose([]) is None
