# SPDX-License-Identifier: Apache-2.0
"""On a real Ceph and real guests."""
