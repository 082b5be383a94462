# SPDX-License-Identifier: Apache-2.0
"""Progress bars on a terminal; elsewhere, as in a pipe or from cron, nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cinderlite.core.progress import Progress, silent


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """What shows how far something is, on the standard error, until the block ends; a bar for each thing to be done."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()
    with progress.Progress(*columns, progress.TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def note(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield note
