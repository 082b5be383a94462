# SPDX-License-Identifier: Apache-2.0
"""Which rows Ceph has a record of that they can be rebuilt from; of what was there before, all is yet to be written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

#: Table → the name that its indices begin with.
RECORDED = {
    "attachments": "attachments", "backups": "backups", "group_snapshots": "group_snapshots", "snapshots": "snapshots",
    "volume_groups": "groups", "volumes": "volumes",
}  # fmt: skip


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    for table, name in RECORDED.items():
        with op.batch_alter_table(table) as batch_op:
            batch_op.add_column(sa.Column("unwritten", sa.BigInteger(), nullable=True, server_default="0"))
        op.create_index(f"{name}_unwritten", table, ["unwritten"])
    with op.batch_alter_table("volumes") as batch_op:
        batch_op.add_column(sa.Column("record_host", sa.String(length=255), nullable=True))
    op.create_table(
        "gone_records",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("row_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("gone_records_by_host", "gone_records", ["host"])
    op.create_table(
        "recorder",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("database_id", sa.String(length=36), nullable=False),
        sa.Column("lease_owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
