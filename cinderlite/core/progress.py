# SPDX-License-Identifier: Apache-2.0
"""How far something is that an administrator waits for; who shows it is `cmd`."""

from __future__ import annotations

from collections.abc import Callable

#: Is told what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


def silent(_what: str, _done: int, _total: int) -> None:
    """Nobody wants to know."""
