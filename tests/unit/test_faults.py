# SPDX-License-Identifier: Apache-2.0
"""The fault suite's report: when it is good, and what it shows."""

from __future__ import annotations

from faults.report import Report


def played() -> Report:
    made = Report("5eed")
    made.operation("create", "accepted")
    made.operation("create", "cut off")
    made.fault("OSD stopped", 2)
    return made


def test_it_is_good_when_nothing_is_wrong_and_something_was_tried() -> None:
    assert not Report("5eed").good
    made = played()
    assert made.good
    made.wrong("lost", "volume 1 is gone")
    assert not made.good


def test_it_shows_what_was_done_broken_and_found() -> None:
    made = played()
    made.wrong("stuck", "volume 2 is creating")
    made.notes["compared data"] = "7"
    lines = made.text().splitlines()
    assert lines[0].startswith("seed 5eed, ")
    shown = {tuple(line.split()) for line in lines}
    assert {("create", "1", "0", "0", "1", "0"), ("OSD", "stopped", "2"), ("lost", "0"), ("stuck", "1")} <= shown
    assert "  stuck: volume 2 is creating" in lines
    assert "compared data: 7" in lines
