# SPDX-License-Identifier: Apache-2.0
"""All operations at once while everything breaks: see doc/faults.md and `tox -e faults`."""
