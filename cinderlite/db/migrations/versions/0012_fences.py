# SPDX-License-Identifier: Apache-2.0
"""Who has a volume's image open, and what was taken from servers by force."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    op.add_column("attachments", sa.Column("clients", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "leftovers",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("server_id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("clients", sa.JSON(), nullable=False),
        sa.Column("fenced_until", sa.Double(), nullable=False),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("previous_status", sa.String(length=64), nullable=True),
        sa.Column("intent", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("busy", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("leftovers_by_server", "leftovers", ["server_id"])
    op.create_index("leftovers_busy", "leftovers", ["busy", "lease_until"])
    op.create_table(
        "own_clients",
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("address"),
    )
