# SPDX-License-Identifier: Apache-2.0
"""What is done beside something else, and what is begun upon a word."""

from __future__ import annotations

import threading

import pytest

from cinderlite.guests import threads


def test_what_is_begun_upon_a_word_is_done_once_and_waited_for() -> None:
    gate, done = threading.Event(), []

    def work() -> str:
        gate.wait(10)
        done.append(threading.current_thread().name)
        return "done"

    upon = threads.Upon("upon", work)
    upon.begin()
    upon.begin()
    assert not done
    gate.set()
    upon.end()
    assert done == ["upon"]
    assert upon.result() == "done"
    assert done == ["upon"]


def test_who_wants_its_result_begins_it() -> None:
    assert threads.Upon("upon", lambda: 1).result() == 1
    with pytest.raises(ValueError, match="x"):
        threads.Upon("upon", lambda: int("x")).result()


def test_a_word_that_comes_late_begins_nothing() -> None:
    done: list[int] = []
    upon = threads.Upon("upon", lambda: done.append(1))
    upon.end()
    upon.begin()
    with pytest.raises(RuntimeError):
        upon.result()
    assert not done
