# SPDX-License-Identifier: Apache-2.0
"""A project's snapshots, backups and attachments of a status, and what its snapshots use, are read from an index."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    for table in ("snapshots", "backups", "attachments"):
        op.create_index(f"{table}_of_project_by_status", table, ["project_id", "status", "created_at", "id"])
    op.create_index("snapshots_usage", "snapshots", ["project_id", "consumes_quota", "volume_type_id", "volume_size"])
