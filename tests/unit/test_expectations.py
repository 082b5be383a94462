# SPDX-License-Identifier: Apache-2.0
"""Reading what tempest prints, and holding it against the lists."""

from __future__ import annotations

import pathlib

import pytest

from backends.expectations import Expectations
from backends.tempest import Result, results

SAID = """\
{0} a.Class.test_well [0.012345s] ... ok
{1} a.Class.test_ill[compute,id-3] [1.500000s] ... FAILED

Captured traceback:
    the reason
{0} a.Class.test_left_out ... SKIPPED: no such feature
{1} setUpClass (a.Other) [0.000000s] ... FAILED

    another reason

======
Totals
======
Ran: 4 tests
"""

LISTS = """\
must pass:
  a.Class: [test_well, test_ill]
  a.Other: [test_of_other]
must pass in newest:
  a.Later: [test_later]
must pass in debian12: {}
does not apply:
  - because: nobody has it
    tests:
      a.Class: [test_left_out]
"""


@pytest.fixture
def lists(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "expected.yaml"
    path.write_text(LISTS, encoding="utf-8")
    return path


def ok(*names: str) -> list[Result]:
    return [Result(name, "ok") for name in names]


def test_what_is_printed_is_read() -> None:
    assert list(results(iter(SAID.splitlines(keepends=True)))) == [
        Result("a.Class.test_well", "ok", 0.012345),
        Result("a.Class.test_ill", "FAILED", 1.5, "Captured traceback:\n    the reason"),
        Result("a.Class.test_left_out", "SKIPPED", 0.0, "no such feature"),
        Result("a.Other", "FAILED", 0.0, "another reason"),
    ]


def test_failed_skipped_and_missing_tests_are_broken(lists: pathlib.Path) -> None:
    verdict = Expectations.read(lists, "debian12", "").judge(results(iter(SAID.splitlines(keepends=True))))
    assert not verdict.good
    assert verdict.passed == ["a.Class.test_well"]
    assert list(verdict.broken) == ["a.Class.test_ill", "a.Other", "a.Other.test_of_other"]
    assert "another reason" in verdict.broken["a.Other.test_of_other"]
    assert verdict.not_applicable == {"a.Class.test_left_out": "nobody has it"}
    assert not Expectations.read(lists, "debian12", "").judge([]).good


def test_what_one_kind_does_not_have_is_asked_of_the_other_only(lists: pathlib.Path) -> None:
    must = ok("a.Class.test_well", "a.Class.test_ill", "a.Other.test_of_other")
    assert Expectations.read(lists, "debian12", "").judge(must).good
    assert list(Expectations.read(lists, "newest", "").judge(must).broken) == ["a.Later.test_later"]
    assert Expectations.read(lists, "newest", r"^a\.Class").judge(must[:2]).good


def test_what_is_on_no_list_is_named_but_breaks_nothing(lists: pathlib.Path) -> None:
    must = ok("a.Class.test_well", "a.Class.test_ill", "a.Other.test_of_other")
    more = [Result("a.New.test_new", "FAILED"), Result("a.Later.test_later", "SKIPPED"), *ok("a.Class.test_left_out")]
    verdict = Expectations.read(lists, "debian12", "").judge([*must, *more])
    assert verdict.good
    assert verdict.new == {"a.New.test_new": "FAILED"}
    assert verdict.surprises == ["a.Class.test_left_out"]


def test_a_class_that_cannot_be_cleaned_up_is_broken(lists: pathlib.Path) -> None:
    must = ok("a.Class.test_well", "a.Class.test_ill", "a.Other.test_of_other")
    verdict = Expectations.read(lists, "debian12", "").judge([*must, Result("a.Class", "FAILED", 0, "still there")])
    assert list(verdict.broken) == ["a.Class"]
