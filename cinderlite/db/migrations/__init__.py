# SPDX-License-Identifier: Apache-2.0
"""alembic steps; see `cinderlite.db.migrate`."""
