# SPDX-License-Identifier: Apache-2.0
"""What the lab promises to workers that come at the same time."""

from __future__ import annotations

import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

from lab.process import turn


def test_one_at_a_time_has_the_turn_of_a_file(tmp_path: pathlib.Path) -> None:
    made: list[str] = []

    def make_once(_: int) -> None:
        with turn(tmp_path / "turn", timeout=20):
            if not made:
                time.sleep(0.05)  # In which the others would find nothing, too.
                made.append("it")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make_once, range(4)))
    assert made == ["it"]


def test_who_may_only_read_a_file_has_turns_of_it(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "turn"
    file.touch(mode=0o444)
    before = file.stat().st_mtime_ns
    with turn(file, timeout=1):
        pass
    assert file.stat().st_mtime_ns == before
    assert file.read_bytes() == b""
