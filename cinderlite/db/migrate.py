# SPDX-License-Identifier: Apache-2.0
"""Bring a database to the form that this release needs; the steps are in `migrations/`, made with alembic."""

from __future__ import annotations

import pathlib

import alembic.command
import alembic.config
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc

from cinderlite import errors


def _config(url: str) -> alembic.config.Config:
    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(pathlib.Path(__file__).parent / "migrations"))
    # As an attribute: a main option would have to escape the percent signs of a password.
    configuration.attributes["url"] = url
    return configuration


def upgrade(url: str) -> None:
    """Run the steps that the database has not seen yet. Raises DatabaseUnavailable."""
    try:
        alembic.command.upgrade(_config(url), "head")
    except exc.OperationalError as error:
        raise errors.DatabaseUnavailable from error


def newest() -> str:
    """The step that this release needs."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def version(url: str) -> str | None:
    """The last step that the database has seen; None for an empty one. Raises DatabaseUnavailable."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except exc.OperationalError as error:
        raise errors.DatabaseUnavailable from error
    finally:
        engine.dispose()
