# SPDX-License-Identifier: Apache-2.0
"""What `tools/bench` measured, kept as JSON and written as a page of the documentation with its charts."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from charts import Chart, svg
from growth import PARTS, Fact, Part
from measuring import machine, versions

Aims = Mapping[str, float | None]


@dataclasses.dataclass
class Figures:
    """All parts that were measured on one machine; `bare` is `benchmark.report`'s. `commits` are by part."""

    machine: dict[str, str] = dataclasses.field(default_factory=machine)
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    commits: dict[str, str] = dataclasses.field(default_factory=dict)
    rounds: int = 0
    bare: dict[str, Any] | None = None
    grown: dict[str, Part] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: pathlib.Path | None) -> Figures:
        """Those of an earlier run, to which parts are added. SystemExit if they are of something else than this."""
        now = cls()
        if path is None or not path.exists():
            return now
        said = json.loads(path.read_text(encoding="utf-8"))
        if (said["machine"], said["versions"]) != (now.machine, now.versions):
            raise SystemExit(f"{path} has figures of another machine or other versions: remove it, or name another")
        grown = {
            name: Part([Chart(**chart) for chart in part["charts"]], [Fact(**fact) for fact in part["facts"]])
            for name, part in said["grown"].items()
        }
        return dataclasses.replace(now, commits=said["commits"], rounds=said["rounds"], bare=said["bare"], grown=grown)

    def cinderlite(self) -> str:
        """Which cinderlite was measured; which parts with which, if it was not always the same."""
        parts: dict[str, list[str]] = {}
        for name, commit in self.commits.items():
            parts.setdefault(commit, []).append(name)
        if len(parts) == 1:
            return next(iter(parts))
        return "; ".join(f"{commit} ({', '.join(names)})" for commit, names in parts.items())

    def save(self, path: pathlib.Path) -> None:
        """Keep them."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def text(figures: Figures, aims: Aims, crowd: int) -> str:
    """All tables."""
    parts = [_bare(figures, aims, crowd)] if figures.bare else []
    parts += [_part(name, figures.grown[name], charts="") for name in PARTS if name in figures.grown]
    return "\n\n".join(parts)


def write(path: pathlib.Path, figures: Figures, aims: Aims, crowd: int) -> None:
    """The page, and its charts in the directory charts beside it."""
    known = figures.machine | {"cinderlite": figures.cinderlite()} | figures.versions
    said = "\n".join(f"- {name}: {value}" for name, value in known.items())
    lines = [
        "# What cinderlite costs", "",
        "Written by `tools/bench --page doc/performance.md`; do not edit. A one-node Ceph, guests and clients share",
        "the machine's processors with the service, so ratios count more than milliseconds.", "", said, "",
    ]  # fmt: skip
    if figures.bare:
        lines += [
            "## Beside the bare calls", "",
            f"Medians of {figures.rounds} rounds, in which a bare call (librbd, QMP, libvirt) and the same thing",
            "through the API take turns. A create is one request, after which the first GET shows `available`; an",
            "attach ends when the guest's kernel shows the disk, a detach when the disk is released.", "",
            _bare(figures, aims, crowd), "",
        ]  # fmt: skip
    if figures.grown:
        directory = path.parent / "charts"
        directory.mkdir(exist_ok=True)
        lines += [
            "## How cost grows",
            "",
            "Each part has a Ceph and a service of its own. Medians, where nothing else is said.",
            "",
        ]
        for name in (name for name in PARTS if name in figures.grown):
            part = figures.grown[name]
            for chart in part.charts:
                (directory / f"{chart.name}.svg").write_text(svg(chart), encoding="utf-8")
            lines += [_part(name, part, charts=directory.name), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _part(name: str, part: Part, *, charts: str) -> str:
    """A part's tables and figures, with its pictures if they are in a directory."""
    lines = [f"### {name.capitalize()}", "", inspect.getdoc(PARTS[name]) or ""]
    for chart in part.charts:
        if charts:
            lines += ["", f"![{chart.title}, {chart.y}]({charts}/{chart.name}.svg)"]
        lines += ["", f"| {chart.title}, {chart.y}; {chart.x} | {' | '.join(f'{step:,}' for step in chart.steps)} |"]
        lines += ["|---" * (len(chart.steps) + 1) + "|"]
        lines += [
            f"| {line} | {' | '.join(f'{value:g}' for value in values)} |" for line, values in chart.lines.items()
        ]
    if part.facts:
        lines += ["", "| | | aim |", "|---|---|---|"]
        lines += [f"| {fact.name} | {fact.value:g} | {_aim(fact)} |" for fact in part.facts]
    return "\n".join(lines)


def _aim(fact: Fact) -> str:
    """What a figure is to be, and whether it is."""
    if fact.at_most is not None:
        return f"≤ {fact.at_most:g}" + ("" if fact.value <= fact.at_most else ", missed")
    if fact.at_least is not None:
        return f"≥ {fact.at_least:g}" + ("" if fact.value >= fact.at_least else ", missed")
    return ""


def _bare(figures: Figures, aims: Aims, crowd: int) -> str:
    """What stands beside bare calls, as a table."""
    found = figures.bare or {}
    medians, ratios = found["median_ms"], found["ratio"]
    growth = ratios["list of 10000 rows / of 1000"]
    lines = ["| | bare ms | cinderlite ms | ratio | aim |", "|---|---|---|---|---|"]
    for name, aim in aims.items():
        lines.append(
            f"| {name} | {medians[f'bare {name}']} | {medians[name]} | {ratios[name]} | {f'≤ {aim:g}' if aim else ''} |"
        )
    bare, ours = ratios["bare crowd / one"], ratios["crowd / one"]
    lines += [
        f"| {crowd} attachments to {crowd} guests, times one of them | {bare} times | {ours} times | | ≤ 2 times |",
        f"| list 1,000 in detail of 1,000 rows | | {medians['list 1000 of 1000']} | | ≤ 100 ms |",
        f"| list 1,000 in detail of 10,000 rows | | {medians['list 1000 of 10000']} | {growth} | no slower |",
    ]
    lines += [f"| {name} | | {value} | | |" for name, value in found["facts"].items()]
    return "\n".join(lines)
