# SPDX-License-Identifier: Apache-2.0
"""The keys of encrypted volumes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    op.create_table(
        "encryption_keys",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("wrapped", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
