# SPDX-License-Identifier: Apache-2.0
"""What the documents name is there: files, headings, commands with their arguments, options, figures."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import io
import itertools
import pathlib
import re
import shlex

import prometheus_client
import pytest

from cinderlite import config, metrics
from cinderlite.cmd import manage

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "doc").rglob("*.md"))]
OURS = re.compile(r"(?:tests|tools|etc|cinderlite|doc)/[\w./-]+")
NAMES = {document: str(document.relative_to(ROOT)) for document in DOCUMENTS}


def code(text: str) -> list[str]:
    """What is to be read letter by letter: the lines of blocks, and what stands between backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = itertools.chain.from_iterable(block.splitlines() for block in blocks)
    return [*lines, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))]


def anchors(path: pathlib.Path) -> set[str]:
    """What links can name in a document: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES.get)
def test_what_a_document_refers_to_is_there(document: pathlib.Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for words in code(text):
        for path in filter(OURS.fullmatch, words.split()):
            assert (ROOT / path).exists(), path


def understood(words: list[str]) -> bool:
    """Whether `cinderlite-manage` takes that, or would with one argument more."""
    parser = manage._parser()
    for more in ([], ["1"]):
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit, argparse.ArgumentError):
            parser.parse_args([*words, *more])
            return True
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES.get)
def test_a_command_can_be_typed_as_it_stands_there(document: pathlib.Path) -> None:
    for line in code(document.read_text(encoding="utf-8")):
        for command in re.findall(r"(?<![\w.])cinderlite-manage((?: (?:--?)?[\w./%$=:+-]+)+)", line):
            words = ["1" if re.fullmatch(r"[A-Z_-]+", word) else word for word in shlex.split(command)]
            assert understood(words), f"cinderlite-manage{command}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES.get)
def test_a_configuration_can_be_used_as_it_stands_there(document: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cinderlite.conf"
    path.touch(mode=0o600)
    for block in re.findall(r"^```ini\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if re.search(r"^\[Service\]", block, re.MULTILINE):
            continue
        path.write_text(block, encoding="utf-8")
        loaded = config.load(["--config-file", str(path)])
        for section in re.split(r"^(?=\[)", block, flags=re.MULTILINE)[1:]:
            group = section[1 : section.index("]")]
            for name in re.findall(r"^(\w+) *=", section, re.MULTILINE):
                # Only who reads a value is told that it is none, or that there is no such option.
                assert (loaded if group == "DEFAULT" else loaded[group])[name] is not None


# Decisions are of their day; what is not there any more may stand in them.
@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one.parent.name != "decisions"], ids=NAMES.get)
def test_figures_and_environments_that_a_document_names_are_there(document: pathlib.Path) -> None:
    text = document.read_text(encoding="utf-8")
    told = {
        f"{one._name}{'_total' * isinstance(one, prometheus_client.Counter)}"
        for one in vars(metrics).values()
        if isinstance(one, prometheus_client.metrics.MetricWrapperBase)
    }
    assert set(re.findall(r"`(cinderlite_\w+)`", text)) <= told
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    for name in re.findall(r"(?:tox|tools/test|`)\s?-e ([\w-]+)", text):
        assert tox.has_section(f"testenv:{name}"), name
