# SPDX-License-Identifier: Apache-2.0
"""Volumes of a name in their order, and what a project uses, are read from an index alone."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_INDEXES = {
    "volumes_by_name": ["project_id", "deleted", "name", "created_at", "id"],
    "volumes_named": ["deleted", "name", "created_at", "id"],
    "volumes_usage": ["project_id", "deleted", "consumes_quota", "volume_type_id", "size"],
}


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    for name, columns in _INDEXES.items():
        op.drop_index(name, "volumes")
        op.create_index(name, "volumes", columns)
