# SPDX-License-Identifier: Apache-2.0
"""The rules: plain functions of a context. Nothing here knows HTTP, JSON shapes or API versions."""
