# SPDX-License-Identifier: Apache-2.0
"""Projects that paths name. Nothing is known of one but its id: whether it exists is Keystone's to say."""

from __future__ import annotations

import dataclasses

from cinderlite.context import Context


@dataclasses.dataclass(frozen=True, slots=True)
class Project:
    """The project that a path names, as the target of a policy."""

    project_id: str
    user_id: str


def named(ctx: Context, project_id: str) -> Project:
    """The project of a path."""
    return Project(project_id, ctx.user_id)
