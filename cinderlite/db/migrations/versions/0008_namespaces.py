# SPDX-License-Identifier: Apache-2.0
"""In which RBD namespace a volume's image is; those of before are in the default one, which has no name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    with op.batch_alter_table("volumes") as batch_op:
        batch_op.add_column(sa.Column("namespace", sa.String(length=255), nullable=False, server_default=""))
