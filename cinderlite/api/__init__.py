# SPDX-License-Identifier: Apache-2.0
"""The HTTP edge: JSON shapes, API versions, policies. Only this floor knows them; the rules are in `core`."""
