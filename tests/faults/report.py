# SPDX-License-Identifier: Apache-2.0
"""What was done, what was broken, and what was found wrong: counted by all threads, printed as a table."""

from __future__ import annotations

import collections
import threading
import time

#: What must be zero.
VERDICTS = ("lost", "damaged", "undead", "stuck", "orphaned", "miscounted", "unanswered", "wrong answer")


class Report:
    """Counts, and the sentences behind what is wrong."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.operations: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.faults: collections.Counter[str] = collections.Counter()
        self.notes: dict[str, str] = {}
        self.found: dict[str, list[str]] = {word: [] for word in VERDICTS}
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def operation(self, kind: str, end: str) -> None:
        """Count an operation by how it ended: accepted, refused, unavailable, cut off or unanswered."""
        with self._lock:
            self.operations[kind][end] += 1

    def fault(self, kind: str, count: int = 1) -> None:
        """Count something that was broken."""
        with self._lock:
            self.faults[kind] += count

    def wrong(self, verdict: str, what: str) -> None:
        """Note what must not be."""
        with self._lock:
            self.found[verdict].append(what)
        print(f"{verdict}: {what}", flush=True)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong, and anything was tried at all."""
        accepted = sum(ends["accepted"] for ends in self.operations.values())
        return not any(self.found.values()) and accepted > 0 and bool(self.faults)

    def text(self) -> str:
        """The table."""
        ends = ("accepted", "refused", "unavailable", "cut off", "unanswered")
        lines = [f"seed {self.seed}, {time.monotonic() - self._began:.0f} s", ""]
        lines.append(f"{'operation':18}" + "".join(f"{end:>13}" for end in ends))
        for kind, counts in sorted(self.operations.items()):
            lines.append(f"{kind:18}" + "".join(f"{counts[end]:13}" for end in ends))
        totals = [sum(counts[end] for counts in self.operations.values()) for end in ends]
        lines.append(f"{'all':18}" + "".join(f"{total:13}" for total in totals))
        lines += ["", f"{'fault':30}{'times':>7}", *(f"{kind:30}{n:7}" for kind, n in sorted(self.faults.items()))]
        lines += ["", *(f"{name}: {value}" for name, value in self.notes.items())]
        lines += ["", f"{'wrong':30}{'times':>7}", *(f"{word:30}{len(self.found[word]):7}" for word in VERDICTS)]
        lines += [f"  {word}: {what}" for word in VERDICTS for what in self.found[word]]
        return "\n".join(lines) + "\n"
