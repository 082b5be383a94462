# SPDX-License-Identifier: Apache-2.0
"""Writes what is generated: the configuration sample, the policy sample, the pages of the API reference.

`tools/generate.py config|policy|api-ref` writes; a test compares what is in the repository with what this would write.
"""

from __future__ import annotations

import json
import pathlib
import sys
import textwrap
from typing import Any

import cinder_api
from cinderlite import app, config
from cinderlite.api import compute, policy, rest, volume

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / "etc" / "cinderlite" / "cinderlite.conf.sample"
POLICY = ROOT / "etc" / "cinderlite" / "policy.yaml.sample"
PAGES = ROOT / "api-ref" / "source"
SAMPLES = ROOT / "api-ref" / "samples"
COMPATIBILITY = ROOT / "doc" / "compatibility.md"
_BEGIN, _END = "<!-- written by tools/generate.py api-ref: -->", "<!-- until here -->"
SERVICES = (volume, compute)


def config_sample() -> str:
    """Every option of ours, commented out, with its help and default."""
    lines = [
        "# Options of cinderlite with their defaults. Written by `tox -e genconfig`; do not edit.",
        "# [keystone_authtoken], [oslo_policy] and the options of logging are those of every OpenStack service.",
    ]
    for group, options in config.list_opts():
        lines += ["", f"[{group}]"]
        for option in options:
            lines += ["", *textwrap.wrap(option.help or "", 110, initial_indent="# ", subsequent_indent="# ")]
            choices = getattr(option.type, "choices", None)
            if choices:
                lines += [f"#   {word}: {meaning}" for word, meaning in choices.items()]
            lines.append(f"#{option.name} = {_default(option)}")
    return "\n".join(lines) + "\n"


def _default(option: Any) -> str:
    if option.name == "host":
        return "<this host's name>"
    value = option.sample_default if option.sample_default is not None else option.default
    if value is None:
        return "<None>"
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def operations(service: Any) -> list[rest.Operation]:
    """A service's operations in the order of the reference."""
    return [operation for blueprint in app.blueprints(service) for operation in blueprint.operations]


def policy_sample() -> str:
    """Every rule with its default, commented out, with the operations that ask it."""
    asked: dict[str, list[str]] = {}
    for service in SERVICES:
        for operation in operations(service):
            if operation.policy:
                where = f"{operation.method}  {service.SERVICE.prefix}{operation.rule}"
                where += f" ({operation.action})" if operation.action else ""
                asked.setdefault(operation.policy, []).append(where)
    lines = ["# Policy rules of cinderlite with their defaults. Written by `tox -e genpolicy`; do not edit."]
    for rule in policy.list_rules():
        lines += ["", f"# {rule.description}", *(f"# {where}" for where in asked.get(rule.name, []))]
        lines.append(f'#"{rule.name}": "{rule.check_str}"')
    return "\n".join(lines) + "\n"


def sample(service: Any, operation: rest.Operation) -> pathlib.Path:
    """Where an operation's recorded sample lies."""
    name: str = service.SERVICE.name
    return SAMPLES / name / f"{operation.name}.json"


def page(service: Any, blueprint: rest.Blueprint) -> str:
    """The reference of one resource, in Markdown."""
    lines = [f"# {blueprint.about.rstrip('.')}", ""]
    lines += ["Written by `tox -e samples` from the operations and from what the tests received; do not edit.", ""]
    for operation in blueprint.operations:
        action = f" ({operation.action})" if operation.action else ""
        lines += [f"## {operation.method} {service.SERVICE.prefix}{operation.rule}{action}", ""]
        since = operation.window.since or service.SERVICE.minimum
        lines += [operation.description, ""]
        rule = f"`{operation.policy}`" if operation.policy else "any caller"
        lines += [f"Since {since}. Policy: {rule}. Answers {operation.status}.", ""]
        recorded = json.loads(sample(service, operation).read_text(encoding="utf-8"))
        for title in ("request", "response"):
            part = recorded[title]
            lines += [f"{title.capitalize()}: `{part['line']}`", ""]
            if part.get("body") is not None:
                lines += ["```json", json.dumps(part["body"], indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def compatibility() -> str:
    """The page on compatibility: what is written by hand, with the table of operations as it is now."""
    before, rest = COMPATIBILITY.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    return before + _BEGIN + "\n" + _table() + _END + after


def _table() -> str:
    """Cinder's operations, and the compute ones, with what cinderlite makes of each."""
    known = {(one.method, cinder_api.normal(one.rule), one.action): one for one in operations(volume)}
    lines = ["| operation | since | answers | policy | |", "|---|---|---|---|---|"]
    for endpoint in cinder_api.endpoints():
        one = known.get(endpoint.key)
        note = cinder_api.DIFFERS.get(endpoint.name, "" if one else "not yet")
        policy = f"`{one.policy}`" if one and one.policy else ""
        name = endpoint.name.replace(" ", " `", 1) + "`"
        lines.append(f"| {name} | {endpoint.since} | {endpoint.status if one else '–'} | {policy} | {note} |")
    lines += ["", "Of compute, under `/v2.1`, what clients need around volumes:", ""]
    lines += ["| operation | since | answers | policy |", "|---|---|---|---|"]
    for one in operations(compute):
        since = one.window.since or compute.SERVICE.minimum
        lines.append(f"| {one.method} `{one.rule}` | {since} | {one.status} | `{one.policy or '–'}` |")
    return "\n".join(lines) + "\n"


def pages() -> dict[pathlib.Path, str]:
    """Every page of the reference, and the table of operations that the page on compatibility has."""
    return {COMPATIBILITY: compatibility()} | {
        PAGES / service.SERVICE.name / f"{blueprint.name}.md": page(service, blueprint)
        for service in SERVICES
        for blueprint in app.blueprints(service)
    }


def main() -> int:
    """Write what the command line names."""
    files = {
        "config": lambda: {CONFIG: config_sample()},
        "policy": lambda: {POLICY: policy_sample()},
        "api-ref": pages,
    }[sys.argv[1]]()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
