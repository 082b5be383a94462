# SPDX-License-Identifier: Apache-2.0
"""The database: tables, sessions, migrations. Rows are data; rules about them live in `core`."""
