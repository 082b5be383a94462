# SPDX-License-Identifier: Apache-2.0
"""What the API reference shows: one module a resource.

Each has OPERATIONS, the names of those whose samples it records, and `play(call, world)`, which calls each of them with
`call(method, path, body)`, with `refused=400` if that is all that can be shown; of several calls of one operation the last one counts. NEEDS names a module without which it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
