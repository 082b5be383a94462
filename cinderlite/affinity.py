# SPDX-License-Identifier: Apache-2.0
"""On which processors threads run: those that run Python best all on one, since only one of them can at a time.

Spread over several, they hand the interpreter's lock from one processor to another some dozens of times for each
request, which costs more than what is won (doc/decisions/0027). What a newcomer gets wrong: a thread begins where who
started it may run. librados' threads, and programs, would stay on that one processor, too: start them `anywhere`.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
from collections.abc import Collection, Iterable, Iterator

LOG = logging.getLogger(__name__)

#: The processors that this process was given, as they were when it began.
GIVEN = frozenset(os.sched_getaffinity(0))


def choose(taken: Iterable[int | None]) -> int | None:
    """One that the fewest others stay on, who are `taken`; None if there is no choice."""
    if len(GIVEN) < 2:
        return None
    held = collections.Counter(taken)
    least = min(held[one] for one in GIVEN)
    return random.choice([one for one in sorted(GIVEN) if held[one] == least])


def stay_on(processor: int) -> None:
    """Have this thread, and those that it starts, run on one processor alone."""
    _move({processor})


@contextlib.contextmanager
def anywhere() -> Iterator[None]:
    """This thread, and what is started in the block, may run on every processor of the process."""
    before = os.sched_getaffinity(0)
    if before == GIVEN:
        yield
        return
    _move(GIVEN)
    try:
        yield
    finally:
        _move(before)


def _move(processors: Collection[int]) -> None:
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:  # A sandbox may forbid it, and processors can be taken away: all goes on where it is.
        LOG.warning("a thread stays where it is, and may not move to processors %s: %s", sorted(processors), error)
