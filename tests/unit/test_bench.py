# SPDX-License-Identifier: Apache-2.0
"""What `tools/bench` keeps and writes of what it measured, which needs no measuring."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

pytest.importorskip("rbd")  # What measures imports both.
pytest.importorskip("libvirt")

import benchmark
import reporting
from charts import Chart, svg
from growth import PARTS, Fact, Part
from measuring import processor
from reporting import Figures

CHART = Chart(
    "rows", "Requests <of> one", "volumes", "ms", [1000, 10000, 1000000], {"show": [2.0, 2.5, 3.0], "list": [0, 9, 31]}
)
PART = Part([CHART], [Fact("ratio", 1.6, at_most=1.5), Fact("rate", 700, at_least=600), Fact("count", 3)])


def points(picture: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(picture)  # noqa: S314 -- made here
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    return [[cast("Any", tuple(map(float, one.split(",")))) for one in line.attrib["points"].split()] for line in lines]


def test_a_chart_goes_up_with_the_values_and_stays_in_its_frame() -> None:
    show, listed = points(svg(CHART))
    assert [x for x, _ in show] == [x for x, _ in listed] == sorted(x for x, _ in show)
    assert listed[0][1] > show[0][1] > show[1][1] > show[2][1] > listed[2][1] >= 0
    assert points(svg(Chart("zero", "", "", "", [1], {"none": [0.0]})))


def test_the_page_has_tables_charts_and_whether_aims_are_met(tmp_path: pathlib.Path) -> None:
    figures = Figures(
        machine={"memory": "3 GiB"}, versions={"Ceph": "16"}, commits={"rows": "a1"}, grown={"rows": PART}
    )
    reporting.write(tmp_path / "page.md", figures, {}, 20)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "- memory: 3 GiB\n- cinderlite: a1\n- Ceph: 16\n" in page
    assert "| show | 2 | 2.5 | 3 |" in page
    assert "| ratio | 1.6 | ≤ 1.5, missed |" in page
    assert "| rate | 700 | ≥ 600 |" in page
    assert "](charts/rows.svg)" in page
    assert points((tmp_path / "charts" / "rows.svg").read_text(encoding="utf-8"))
    assert "Beside the bare calls" not in page


def test_parts_are_added_to_those_of_an_earlier_run_on_the_same_machine_only(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "figures.json"
    first = Figures.load(path)
    first.grown["rows"], first.commits["rows"] = PART, "a1"
    first.save(path)
    again = Figures.load(path)
    assert again == first
    again.commits["copies"] = "b2"
    assert again.cinderlite() == "a1 (rows); b2 (copies)"
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(said | {"machine": {"memory": "another"}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="another machine"):
        Figures.load(path)


@pytest.mark.parametrize("words", ["--small --page x", "--small --json x", "--only rows --page x", "--only wors"])
def test_what_would_make_a_wrong_page_is_refused(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()


def test_each_part_says_what_it_measures() -> None:
    assert all(part.__doc__ for part in PARTS.values())


def test_the_processor_is_that_of_a_process_and_of_its_children() -> None:
    burn = "import os, time\nos.fork()\nwhile time.process_time() < 0.3: pass\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", burn], start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 60
            while processor(cast("Any", SimpleNamespace(pid=process.pid))) < 0.55:  # More than either of them uses.
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, 9)
