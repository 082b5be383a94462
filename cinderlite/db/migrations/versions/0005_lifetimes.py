# SPDX-License-Identifier: Apache-2.0
"""How deep clones are and which are made whole; deleted volumes that can be brought back.

Volumes of before count as not cloned: what they were made from cannot always be told from the rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    with op.batch_alter_table("volumes") as batch_op:
        batch_op.add_column(sa.Column("clone_depth", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("purge_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("kept", sa.JSON(none_as_null=True), nullable=True))
    op.create_index("volumes_by_depth", "volumes", ["deleted", "clone_depth"])
    op.create_index("volumes_by_purge", "volumes", ["purge_at"])
    op.create_table(
        "flattens",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("clients", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("previous_status", sa.String(length=64), nullable=True),
        sa.Column("intent", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("busy", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["id"], ["volumes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
