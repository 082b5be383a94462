# SPDX-License-Identifier: Apache-2.0
"""What the lab promises to workers that come at the same time."""

from __future__ import annotations

import fcntl
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from lab.process import end, turn


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


def test_a_process_that_was_killed_has_let_go_of_its_locks(tmp_path: pathlib.Path) -> None:
    lock, pid_file = tmp_path / "lock", tmp_path / "pid"
    lock.touch()
    # A process's command line is gone as soon as its memory is being given back; its files are closed after that.
    held = (
        "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
        "much = bytearray(b'x') * 2**28; print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", held, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pid_file.write_text(str(process.pid), encoding="ascii")
        assert end(pid_file, str(lock), kill=True)
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not end(pid_file, str(lock))
