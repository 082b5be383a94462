# SPDX-License-Identifier: Apache-2.0
"""What an audit tells of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from cinderlite.context import World

#: An id as the names of images and snapshots have it.
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

#: Changes a row, if it still is as it was seen; whether it was.
Repair = Callable[[World], bool]


@dataclasses.dataclass(slots=True)
class Finding:
    """One thing that does not fit. `remedy` says what is to be done; with `repair` --repair does it."""

    kind: str
    backend: str
    subject: str
    what: str
    remedy: str
    repair: Repair | None = None
    repaired: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same finding when it is looked for again."""
        return self.kind, self.subject

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "repair"}
        return shown | {"repairable": self.repair is not None}

    def __str__(self) -> str:
        end = "repaired" if self.repaired else f"--repair would: {self.remedy}" if self.repair else self.remedy
        return f"{self.backend}: {self.kind}: {self.subject}: {self.what} -> {end}"
