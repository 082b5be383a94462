# SPDX-License-Identifier: Apache-2.0
"""The newest release runs on while the database has this tree's form already, as in an upgrade of one host after another.

Its own code is taken from git, by its tag. Until there is one, there is nothing to be compatible with.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import sqlalchemy

from backends.databases import Databases
from cinderlite.db import migrate

ROOT = pathlib.Path(__file__).parents[2]
#: What an operator's day is, over fakes.
SMOKE = ("tests/api/test_volumes.py", "tests/api/test_attachments.py")
#: Has the release's own tests make their databases with this tree's steps.
_PLUGIN = """\
import os
from cinderlite.db import migrate

_theirs = migrate._config

def _config(url):
    made = _theirs(url)
    made.set_main_option("script_location", os.environ["NEWER_MIGRATIONS"])
    return made

migrate._config = _config
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tree of the newest release."""
    listed = subprocess.run(
        ["git", "tag", "--list", "v[0-9]*", "--sort=-version:refname", "--merged", "HEAD"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if listed.returncode or not listed.stdout.split():
        pytest.skip("git knows no tag of a release here")
    path = tmp_path_factory.mktemp("release")
    packed = path / "tree.tar"
    command = ["git", "archive", "--output", str(packed), listed.stdout.split()[0]]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)
    tree = path / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-xf", packed, "-C", tree], timeout=60, check=True)
    return tree


@pytest.mark.timeout(600)
def test_the_newest_release_works_on_a_database_of_this_one(
    release: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    plugins = release / "plugins"
    plugins.mkdir()
    (plugins / "newer_database.py").write_text(_PLUGIN, encoding="ascii")
    path = ":".join(str(one) for one in (release, release / "tools", release / "tests", plugins))
    newer = str(pathlib.Path(migrate.__file__).parent / "migrations")
    kind = request.config.getoption("database")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "newer_database", "--database", kind, *SMOKE],
        cwd=release, env={**os.environ, "PYTHONPATH": path, "NEWER_MIGRATIONS": newer},
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_no_step_since_the_newest_release_takes_anything_from_it(release: pathlib.Path, databases: Databases) -> None:
    steps = sorted(path.name for path in (release / "cinderlite/db/migrations/versions").glob("[0-9]*.py"))
    url = databases.blank()
    migrate.upgrade(url, steps[-1].partition("_")[0])
    before = columns(url)
    migrate.upgrade(url)
    after = columns(url)
    assert before.keys() <= after.keys()
    # Whatever writes a row without knowing of a column must still be able to.
    needed = {
        key: column for key, column in after.items()
        if key not in before and key[0] in {table for table, _ in before}
        and not column["nullable"] and column["default"] is None
    }  # fmt: skip
    assert not needed, "a new column needs a server_default, or to be nullable"
    stricter = [key for key in before if before[key]["nullable"] and not after[key]["nullable"]]
    assert not stricter, "a column that could be empty must go on to be"


def columns(url: str) -> dict[tuple[str, str], sqlalchemy.engine.interfaces.ReflectedColumn]:
    """Every column, by its table and name."""
    engine = sqlalchemy.create_engine(url)
    try:
        looked = sqlalchemy.inspect(engine)
        return {(table, one["name"]): one for table in looked.get_table_names() for one in looked.get_columns(table)}
    finally:
        engine.dispose()
