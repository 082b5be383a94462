# SPDX-License-Identifier: Apache-2.0
"""cephx users of attachments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    op.add_column("attachments", sa.Column("cephx_name", sa.String(length=64), nullable=True))
