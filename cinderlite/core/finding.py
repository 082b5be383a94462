# SPDX-License-Identifier: Apache-2.0
"""What an audit tells of, and what it may do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, update

from cinderlite.context import World
from cinderlite.db import models

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


def set_row(table: type[Any], row_id: str, values: Mapping[str, Any], *still: ColumnElement[bool]) -> Repair:
    """A repair that gives a row at rest other values, as long as it `still` is as it was seen."""

    def repair(world: World) -> bool:
        with world.db.write() as session:
            done = session.execute(
                update(table)
                .where(table.id == row_id, table.busy == 0, *still)
                .values(updated_at=models.utcnow(), **values)
                .execution_options(synchronize_session=False)
            )
        return bool(done.rowcount == 1)  # type: ignore[attr-defined]

    return repair
