# SPDX-License-Identifier: Apache-2.0
"""What `tools/overload` says of what it found."""

from __future__ import annotations

import collections
from typing import Any

import pytest

from overloading import Stage, report, share


def found(**changes: Any) -> dict[str, Any]:
    """What is found of a service that is as it should be."""
    over = Stage("5 times 20/s", 100, 10, accepted=[0.1] * 200, refused=[0.2] * 800)
    return {
        "stages": [Stage("ramp", 20, 4, accepted=[0.1] * 80), over, Stage("afterwards", 10, 4, accepted=[0.1] * 40)],
        "sustained": 20, "memory": (100, 110), "wrong": [], "made": collections.Counter({202: 20, 503: 80}),
        "many": [(10000, 100.0), (100000, 104.0)], **changes,
    }  # fmt: skip


def test_a_service_that_sheds_is_well() -> None:
    text, well = report(found(), "fakes")
    assert well
    assert text.splitlines()[0].startswith("on fakes; sustained: 20 requests/s")
    row = next(line.split() for line in text.splitlines() if "5 times" in line)
    assert row == ["5", "times", "20/s", "100", "20", "80", "0", "100", "100", "200"]


@pytest.mark.parametrize(
    "changes",
    [
        {"wrong": ["made-7 was refused, and is creating"]},
        {"many": [(10000, 100.0), (100000, 110.0)]},
        {"stages": [Stage("", 1, 1), Stage("over", 1, 1, accepted=[0.1]), Stage("", 1, 1)]},
        {"stages": [Stage("", 1, 1), Stage("", 1, 1, refused=[0.1], others=collections.Counter([0])), Stage("", 1, 1)]},
        {"stages": [Stage("", 1, 1), Stage("", 1, 1, refused=[0.1]), Stage("afterwards", 1, 1, refused=[0.1])]},
        {"stages": [Stage("", 1, 1), Stage("", 1, 1, accepted=[9.0], refused=[0.1]), Stage("afterwards", 1, 1)]},
    ],
    ids=["half-done", "memory grows", "nothing is refused", "no answer", "does not recover", "late"],
)
def test_what_is_not_well_is_said(changes: dict[str, Any]) -> None:
    assert report(found(**changes), "fakes")[1] is False


def test_the_share_of_times() -> None:
    assert (share([], 99), share([3.0], 99)) == (0.0, 3.0)
    assert share([number / 100 for number in range(101)], 99) == pytest.approx(0.99)
