# SPDX-License-Identifier: Apache-2.0
"""What a run of somebody else's tests must give: a list of those that must pass, and of those that cannot apply.

A test that must pass and was not even found counts as one that failed: a list that shrinks unseen would guard nothing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping

import yaml

from backends.tempest import Result


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A comparison: names, with reasons where there are any; `broken` must have passed, `new` are on no list."""

    passed: list[str]
    broken: dict[str, str]
    not_applicable: dict[str, str]
    surprises: list[str]
    new: dict[str, str]

    @property
    def good(self) -> bool:
        """Whether every test that must pass did."""
        return not self.broken

    def text(self, seconds: float) -> str:
        """The comparison for whoever ran it."""
        lines = [f"\n== {name}\n{reason}" for name, reason in self.broken.items()]
        lines += ["", *(f"not applicable: {name}: {reason}" for name, reason in self.not_applicable.items())]
        lines += [f"passed, though it is said not to apply: {name}" for name in self.surprises]
        lines += [f"on no list: {name} ({word})" for name, word in self.new.items()]
        lines += [f"broken: {name}" for name in self.broken]
        lines.append(
            f"{len(self.passed)} passed, {len(self.broken)} broken, {len(self.not_applicable)} not applicable, "
            f"{len(self.surprises) + len(self.new)} to be put on another list; {seconds:.0f} s"
        )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Expectations:
    """Names of tests that must pass, and reasons by the names of those that cannot apply; `known` are on any list."""

    must_pass: frozenset[str]
    not_applicable: Mapping[str, str]
    known: frozenset[str]

    @classmethod
    def read(cls, path: pathlib.Path, kind: str, selection: str) -> Expectations:
        """The lists for one kind of suite, as far as the regular expression selects them."""
        lists = yaml.safe_load(path.read_text(encoding="utf-8"))
        here = {"must pass", f"must pass in {kind}"}
        must = {key: _names(classes) for key, classes in lists.items() if key.startswith("must pass")}
        reasons = {name: one["because"] for one in lists["does not apply"] for name in _names(one["tests"])}
        wanted = re.compile(selection)
        return cls(
            frozenset(name for key in here for name in must[key] if wanted.search(name)),
            {name: reason for name, reason in reasons.items() if wanted.search(name)},
            frozenset([*reasons, *(name for names in must.values() for name in names)]),
        )

    def judge(self, results: Iterable[Result]) -> Verdict:
        """Hold results against the lists."""
        found = {one.name: one for one in results}
        passed = {name for name, one in found.items() if one.word == "ok"}
        # A class that could not be cleaned up has left something that could not be deleted.
        classes = {name.rpartition(".")[0] for name in self.must_pass}
        unclean = {name for name, one in found.items() if name in classes and one.word == "FAILED"}
        return Verdict(
            sorted(self.must_pass & passed),
            {name: _why(found, name) for name in sorted(self.must_pass - passed | unclean)},
            {name: self.not_applicable[name] for name in sorted(self.not_applicable) if name not in passed},
            sorted(self.not_applicable.keys() & passed),
            {name: found[name].word for name in sorted(found.keys() - self.known) if not self._is_class(name)},
        )

    def _is_class(self, name: str) -> bool:
        return any(test.startswith(f"{name}.") for test in self.known)


def _names(classes: Mapping[str, Iterable[str]]) -> list[str]:
    return [f"{name}.{test}" for name, tests in classes.items() for test in tests]


def _why(found: Mapping[str, Result], name: str) -> str:
    """Why a test did not pass: its own reason, or that of its class, which could not be set up."""
    one = found.get(name) or found.get(name.rpartition(".")[0])
    return f"{one.word} {one.reason}" if one else "it did not run"
