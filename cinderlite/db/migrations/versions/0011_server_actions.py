# SPDX-License-Identifier: Apache-2.0
"""What was done to servers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from cinderlite.db.models.base import Time

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    op.create_table(
        "server_actions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("server_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("request_id", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("started_at", Time, nullable=False),
        sa.Column("finished_at", Time, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("server_actions_by_server", "server_actions", ["server_id", "started_at"])
    op.create_index("server_actions_by_request", "server_actions", ["request_id"])
    op.create_index("server_actions_by_age", "server_actions", ["started_at"])
