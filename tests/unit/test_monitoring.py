# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the alerts ask for figures that /metrics really has, by labels that these have."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import prometheus_client
import pytest
import yaml

from cinderlite import metrics
from conftest import Client

ETC = pathlib.Path(__file__).parent.parent.parent / "etc"
BOARD: dict[str, Any] = json.loads((ETC / "grafana" / "cinderlite.json").read_text(encoding="utf-8"))
RULES = ETC / "prometheus" / "cinderlite.rules.yaml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
#: What Prometheus itself and node_exporter say, and the labels that Prometheus adds.
FOREIGN, ADDED = {"up", "node_systemd_unit_state"}, {"job", "instance", "le"}
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def families() -> dict[str, Any]:
    """What there is, by the names that queries use."""
    found: dict[str, Any] = {}
    for one in vars(metrics).values():
        if isinstance(one, prometheus_client.Histogram):
            found |= {f"{one._name}_{part}": one for part in ("bucket", "count", "sum")}
        elif isinstance(one, prometheus_client.Counter):
            found[f"{one._name}_total"] = one
        elif isinstance(one, prometheus_client.Gauge):
            found[one._name] = one
    return found


def names(expression: str) -> set[str]:
    """The figures that a query asks for."""
    return set(re.findall(r"\b(?:cinderlite_|node_)\w+|\bup\b", expression))


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *(alert["expr"] for alert in ALERTS)])
def test_a_query_asks_for_what_there_is(client: Client, expression: str) -> None:
    answer = client.get("/metrics").text
    told = set(re.findall(r"^# TYPE (\w+)", answer, re.MULTILINE))
    known = families()
    for name in names(expression) - FOREIGN:
        assert told & {name, re.sub("_(bucket|count|sum)$", "", name)}, name
        for selector in re.findall(rf"{name}\{{(.*?)\}}", expression):
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector))
            assert labels <= {*known[name]._labelnames} | ADDED, f"{name}: {labels}"
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}
    having = {label for name in names(expression) - FOREIGN for label in known[name]._labelnames} | ADDED
    assert grouped <= having, expression


def test_each_figure_is_on_the_dashboard() -> None:
    asked = set().union(*map(names, EXPRESSIONS))
    shown = {families()[name]._name for name in asked - FOREIGN}
    assert shown == {one._name for one in families().values()}


def test_grafana_can_import_the_dashboard() -> None:
    assert BOARD["uid"] == "cinderlite"
    assert BOARD["schemaVersion"] >= 36
    variables = {one["name"]: one for one in BOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables.keys(), target["expr"]


def test_each_alert_says_what_is_wrong_and_the_manual_what_to_do() -> None:
    manual = (ETC.parent / "doc" / "operating.md").read_text(encoding="utf-8")
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        assert f"`{alert['alert']}`" in manual, f"{alert['alert']} is not in doc/operating.md"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of the package prometheus")
def test_prometheus_understands_every_query(tmp_path: pathlib.Path) -> None:
    queries = [
        {"record": f"panel:query{number}", "expr": text.replace("$job", ".+").replace("$__rate_interval", "5m")}
        for number, text in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "board.yaml").write_text(json.dumps({"groups": [{"name": "board", "rules": queries}]}), "utf-8")
    command = ["promtool", "check", "rules", str(RULES), str(tmp_path / "board.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
