# SPDX-License-Identifier: Apache-2.0
"""The points at which a process can be made to end: which are passed, that nobody is told in production."""

from __future__ import annotations

import pathlib
import re

import pytest

from cinderlite import failpoints
from cinderlite.context import Context, World
from cinderlite.core import volumes
from conftest import settle

SOURCE = pathlib.Path(failpoints.__file__).parent
#: What a volume's life from its creation to its purge passes.
POINTS = [
    f"volumes.{verb}:{point}" for verb in ("create", "delete", "purge") for point in ("begun", "stepped", "settled")
]


def test_nothing_in_the_service_switches_them_on() -> None:
    assert failpoints.watch is None
    for path in SOURCE.rglob("*.py"):
        for line in re.findall(r".*failpoints.*", path.read_text(encoding="utf-8")):
            assert re.search(r"import|failpoints\.watch is not None:|failpoints\.watch\(", line), f"{path}: {line}"


def test_each_commit_of_an_operation_is_between_two_of_them(
    ctx: Context, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    monkeypatch.setattr(failpoints, "watch", passed.append)
    volumes.delete(ctx, volumes.create(ctx, size=1))
    settle(world)
    assert passed == POINTS
