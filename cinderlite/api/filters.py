# SPDX-License-Identifier: Apache-2.0
"""By which keys members may filter each list, since 3.31 as Cinder's file resource_filters.json says it.

What a newcomer gets wrong: administrators filter by whatever a row has; this is about everybody else.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cinderlite import errors

#: Cinder's own lists.
DEFAULTS: Mapping[str, Sequence[str]] = {
    "volume": ["name", "status", "metadata", "bootable", "migration_status", "availability_zone", "group_id", "size",
               "created_at", "updated_at", "consumes_quota"],
    "backup": ["name", "status", "volume_id"],
    "snapshot": ["name", "status", "volume_id", "metadata", "availability_zone", "consumes_quota"],
    "group": ["name"],
    "group_snapshot": ["name", "status", "group_id"],
    "attachment": ["volume_id", "status", "instance_id", "attach_status"],
    "message": ["resource_uuid", "resource_type", "event_id", "request_id", "message_level"],
    "pool": ["name", "volume_type"],
    "volume_type": ["is_public", "extra_specs"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Filters:
    """Resource → the keys; without a file what is listed may also be searched (`key~`), as nobody decided otherwise."""

    keys: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=lambda: DEFAULTS)
    from_file: bool = False

    def allow(self, resource: str, key: str, *, like: bool) -> bool:
        """Whether members may use a query key; `like` if `key~` searches. One that lists `key~` has both."""
        listed = self.keys.get(resource, ())
        names = {key, key.replace("display_name", "name")}
        if not like:
            return not key.endswith("~") and not names.isdisjoint(listed)
        if not names.isdisjoint(listed):
            return True
        return any(f"{name}~" in listed or (not self.from_file and name.removesuffix("~") in listed) for name in names)


def load(path: str | None) -> Filters:
    """The filters of a file, or Cinder's. Raises errors.CinderliteError with a sentence if it is none."""
    if path is None:
        return Filters()
    try:
        found: Any = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.CinderliteError(f"resource_query_filters_file {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(
        isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in found.values()
    ):
        raise errors.CinderliteError(f"resource_query_filters_file {path} must hold an object of lists of names")
    return Filters(found, from_file=True)
