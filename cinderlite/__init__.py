# SPDX-License-Identifier: Apache-2.0
"""OpenStack Block Storage v3 and volume attachments over nothing but librbd and QMP.

Start reading at `app` (what is wired to what), then `api.rest` (how a request travels), `core.states` (how a row
changes its status) and one noun, for example `api.volume.volumes` with `core.volumes`.
"""
