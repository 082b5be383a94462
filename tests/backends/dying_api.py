# SPDX-License-Identifier: Apache-2.0
"""cinderlite-api that kills itself (SIGKILL) at one of the points that `cinderlite.failpoints` names.

DIE_AT holds patterns of points, separated by commas; it dies at the DIE_COUNT-th of them that is passed (the first
without it), with all its processes, and at most once: the file DIE_ONCE is removed first.

With DIE_CHANCE instead, each time a point is passed it is so probable that this process dies there, alone, as long as
the file DIE_ARMED exists; what becomes of it is written there: a line for each death, with the point.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import pathlib
import random
import signal
import sys
from collections.abc import Callable

from cinderlite import failpoints
from cinderlite.cmd import api


def once() -> Callable[[str], None]:
    """Die at the n-th point that fits."""
    patterns, file = os.environ["DIE_AT"].split(","), pathlib.Path(os.environ["DIE_ONCE"])
    left = itertools.count(int(os.environ.get("DIE_COUNT", "1")) - 1, -1)

    def watch(point: str) -> None:
        if any(fnmatch.fnmatchcase(point, one) for one in patterns) and next(left) == 0 and file.exists():
            file.unlink()
            os.killpg(os.getpgid(0), signal.SIGKILL)

    return watch


def by_chance(chance: float, file: pathlib.Path) -> Callable[[str], None]:
    """Die anywhere, again and again."""
    dice = random.SystemRandom()

    def watch(point: str) -> None:
        if dice.random() >= chance or not file.exists():
            return
        with file.open("a", encoding="ascii") as told:
            told.write(f"{point}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    return watch


if __name__ == "__main__":
    failpoints.watch = (
        by_chance(float(os.environ["DIE_CHANCE"]), pathlib.Path(os.environ["DIE_ARMED"]))
        if "DIE_CHANCE" in os.environ
        else once()
    )
    sys.exit(api.main())
