# SPDX-License-Identifier: Apache-2.0
"""Which volumes share data with the backup that they were restored from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    with op.batch_alter_table("volumes") as batch_op:
        batch_op.add_column(sa.Column("restored_from", sa.String(length=36), nullable=True))
    op.create_index("volumes_restored", "volumes", ["restored_from"])
