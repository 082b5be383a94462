# SPDX-License-Identifier: Apache-2.0
"""Every step forward, from every earlier one, with a row in every table; on the database that --database names."""

from __future__ import annotations

import datetime
from typing import Any

import alembic.autogenerate
import pytest
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from backends.databases import Databases
from cinderlite.db import migrate, models

STEPS = [step.revision for step in ScriptDirectory.from_config(migrate._config("")).walk_revisions()][::-1]

#: Tables whose rows a step does not keep, and why.
NOT_KEPT = {("0002", "services"): "signs of life are written anew within seconds"}

#: In letters that a server's own default character set may not have, as long as the column is.
LETTER = "数"


def rows_of(engine: sqlalchemy.Engine) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    found = sqlalchemy.MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(table.select()).mappings()]
            for table in found.sorted_tables
            if table.name != "alembic_version"
        }


def fill(engine: sqlalchemy.Engine) -> None:
    """A row in every table, every column of it set."""
    known = models.Base.metadata.tables
    found = sqlalchemy.MetaData()
    found.reflect(engine)
    written: dict[str, dict[str, Any]] = {}
    with engine.begin() as connection:
        for table in found.sorted_tables:
            if table.name == "alembic_version":
                continue
            written[table.name] = {column.name: _value(column, known, written) for column in table.columns}
            connection.execute(table.insert().values(written[table.name]))


def _value(column: sqlalchemy.Column[Any], known: Any, written: dict[str, dict[str, Any]]) -> Any:
    for key in column.foreign_keys:
        return written[key.column.table.name][key.column.name]
    # MariaDB calls JSON a long text; the models tell.
    here = known.get(column.table.name)
    kind = here.columns[column.name].type if here is not None and column.name in here.columns else column.type
    if isinstance(kind, sqlalchemy.JSON):
        return {"verb": LETTER} if isinstance(column.type, sqlalchemy.JSON) else f'{{"verb": "{LETTER}"}}'
    if isinstance(kind, sqlalchemy.Boolean):
        return True
    if isinstance(kind, sqlalchemy.DateTime):
        return datetime.datetime(2026, 1, 31, 12, 0, 0, 123456)  # noqa: DTZ001 -- naive UTC, as everywhere
    if isinstance(kind, sqlalchemy.String):
        return LETTER * (kind.length or 300)
    return 7


@pytest.mark.parametrize("step", STEPS)
def test_rows_of_an_earlier_release_are_kept(databases: Databases, step: str) -> None:
    url = databases.blank()
    migrate.upgrade(url, step)
    engine = sqlalchemy.create_engine(url)
    try:
        fill(engine)
        before = rows_of(engine)
        assert all(len(rows) == 1 for rows in before.values())
        migrate.upgrade(url)
        assert migrate.version(url) == STEPS[-1]
        after = rows_of(engine)
    finally:
        engine.dispose()
    lost = {table for (at, table) in NOT_KEPT if at > step}
    for table in before.keys() - lost:
        [old], [new] = before[table], after[table]
        assert {key: new[key] for key in old.keys() & new.keys()} == {key: old[key] for key in old.keys() & new.keys()}


def test_a_release_serves_its_own_tables_and_those_of_later_ones(databases: Databases) -> None:
    url = databases.blank()
    assert not migrate.serves(migrate.version(url))
    migrate.upgrade(url, STEPS[-2])
    assert not migrate.serves(migrate.version(url))
    migrate.upgrade(url)
    assert migrate.serves(migrate.version(url))
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert migrate.serves(migrate.version(url))


def test_the_steps_end_in_what_the_models_say(databases: Databases) -> None:
    url = databases.blank()
    migrate.upgrade(url)
    migrate.upgrade(url)  # Once more changes nothing.
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert alembic.autogenerate.compare_metadata(context, models.Base.metadata) == []
    finally:
        engine.dispose()


def test_a_fresh_database_takes_what_the_models_hold(databases: Databases) -> None:
    engine = sqlalchemy.create_engine(databases.fresh())
    try:
        fill(engine)
        with sqlalchemy.orm.Session(engine) as session:
            for mapper in models.Base.registry.mappers:
                assert session.scalars(sqlalchemy.select(mapper.class_)).one() is not None
    finally:
        engine.dispose()
