# SPDX-License-Identifier: Apache-2.0
"""Where a group's snapshot is, specs of group types without a value, and lists by status and name over all projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

#: Table → what its rows are listed by beside their project and age.
_LISTS: dict[str, dict[str, list[str]]] = {
    "volumes": {
        "volumes_by_status": ["deleted", "status", "created_at", "id"],
        "volumes_of_project_by_status": ["project_id", "deleted", "status", "created_at", "id"],
        "volumes_named": ["deleted", "name"],
        "volumes_by_zone": ["deleted", "availability_zone"],
    },
    "snapshots": {
        "snapshots_by_status": ["status", "created_at", "id"],
        "snapshots_by_name": ["project_id", "name"],
        "snapshots_named": ["name"],
    },
    "backups": {
        "backups_by_status": ["status", "created_at", "id"],
        "backups_by_name": ["project_id", "name"],
        "backups_named": ["name"],
    },
    "attachments": {
        "attachments_by_age": ["created_at", "id"],
        "attachments_by_status": ["status", "created_at", "id"],
    },
    "volume_groups": {
        "groups_by_age": ["created_at", "id"],
        "groups_by_status": ["status", "created_at", "id"],
        "groups_named": ["name"],
    },
}


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    with op.batch_alter_table("snapshots") as batch_op:
        batch_op.add_column(sa.Column("group_snap", sa.String(length=255), nullable=True))
    with op.batch_alter_table("group_type_specs") as batch_op:
        batch_op.alter_column("value", existing_type=sa.String(length=255), nullable=True)
    for table, indexes in _LISTS.items():
        for name, columns in indexes.items():
            op.create_index(name, table, columns)
