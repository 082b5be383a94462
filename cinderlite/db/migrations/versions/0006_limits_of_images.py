# SPDX-License-Identifier: Apache-2.0
"""Which images' limits are to be looked at: at first those of all volumes whose type has QoS specs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step; there is no way back but a backup."""
    with op.batch_alter_table("volumes") as batch_op:
        batch_op.add_column(sa.Column("limits_due", sa.String(length=36), nullable=True))
    op.create_index("volumes_limits_due", "volumes", ["limits_due"])
    types = sa.table("volume_types", sa.column("id"), sa.column("qos_specs_id"))
    volumes = sa.table(
        "volumes", sa.column("volume_type_id"), sa.column("deleted", sa.Boolean), sa.column("limits_due")
    )
    limited = sa.select(types.c.id).where(types.c.qos_specs_id.is_not(None))
    stale = volumes.update().where(volumes.c.deleted.is_(False), volumes.c.volume_type_id.in_(limited))
    op.execute(stale.values(limits_due="0006"))
