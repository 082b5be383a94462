# SPDX-License-Identifier: Apache-2.0
"""alembic's entry: connects to the database that `db.migrate` names and runs the steps in one transaction."""

from __future__ import annotations

import sqlalchemy
from alembic import context

from cinderlite.db import models

engine = sqlalchemy.create_engine(context.config.attributes["url"])
with engine.connect() as connection:
    # Batch mode: SQLite alters a table by copying it.
    context.configure(connection=connection, target_metadata=models.Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
