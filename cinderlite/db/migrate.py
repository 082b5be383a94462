# SPDX-License-Identifier: Apache-2.0
"""Bring a database to the form that this release needs; the steps are in `migrations/`, made with alembic."""

from __future__ import annotations

import pathlib
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc
from sqlalchemy.dialects.mysql.base import MySQLDDLCompiler
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from cinderlite import errors


def _config(url: str) -> alembic.config.Config:
    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(pathlib.Path(__file__).parent / "migrations"))
    # As an attribute: a main option would have to escape the percent signs of a password.
    configuration.attributes["url"] = url
    return configuration


@compiles(CreateTable, "mysql", "mariadb")
def _exact(element: CreateTable, compiler: MySQLDDLCompiler, **options: Any) -> str:
    """Whatever the server's defaults: text of any script, of which only the same is equal, blanks at its end too."""
    text: str = compiler.visit_create_table(element, **options)  # type: ignore[no-untyped-call]
    return f"{text.rstrip()} ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin\n\n"


def upgrade(url: str, step: str = "head") -> None:
    """Run the steps up to `step` that the database has not seen yet; none on tables of a later release.

    Raises DatabaseUnavailable.
    """
    have = version(url)
    if have != newest() and serves(have):
        return
    try:
        alembic.command.upgrade(_config(url), step)
    except exc.OperationalError as error:
        raise errors.DatabaseUnavailable from error


def newest() -> str:
    """The step that this release needs."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def serves(have: str | None) -> bool:
    """Whether this release works on tables of that step: on its own, and on those of a later release.

    Steps only add (`tests/unit/test_upgrade.py`), so hosts are upgraded one after another, the tables first.
    """
    known = {step.revision for step in ScriptDirectory.from_config(_config("")).walk_revisions()}
    return have == newest() or (have is not None and have not in known)


def require(have: str | None) -> None:
    """Refuse tables of an earlier release. Raises CinderliteError with what to do."""
    if not serves(have):
        raise errors.CinderliteError(
            f"the tables are at {have or 'nothing'}, and this release needs {newest()}: cinderlite-manage db upgrade"
        )


def version(url: str) -> str | None:
    """The last step that the database has seen; None for an empty one. Raises DatabaseUnavailable."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            return version_of(connection)
    except exc.OperationalError as error:
        raise errors.DatabaseUnavailable from error
    finally:
        engine.dispose()


def version_of(connection: sqlalchemy.Connection) -> str | None:
    """The same of a database that there is a connection to."""
    return MigrationContext.configure(connection).get_current_revision()
