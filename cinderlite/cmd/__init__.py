# SPDX-License-Identifier: Apache-2.0
"""The commands: cinderlite-api, cinderlite-manage, cinderlite-status."""
