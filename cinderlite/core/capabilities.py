# SPDX-License-Identifier: Apache-2.0
"""What a back end can do, and whether that is what a type's extra specs ask for.

As in Cinder, a key without a scope or with the scope `capabilities` must be one that the back end has; any other scope
is somebody else's. A value may begin with an operator; without one it must be equal.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

from cinderlite.context import Backend

SCOPE = "capabilities"
_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge, "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq, "s!=": operator.ne, "s<": operator.lt, "s<=": operator.le, "s>": operator.gt,
    "s>=": operator.ge, "<in>": operator.contains,
}  # fmt: skip
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})


def of(backend: Backend) -> dict[str, Any]:
    """What is always so of a back end; its figures are Ceph's."""
    return {
        "volume_backend_name": backend.volume_backend_name,
        "vendor_name": "Open Source",
        "driver_version": "1.0.0",
        "storage_protocol": "ceph",
        "thin_provisioning_support": True,
        "multiattach": True,
        "QoS_support": False,
        "replication_enabled": False,
    }


def satisfy(backend: Backend, specs: Mapping[str, str]) -> bool:
    """Whether a back end has all that the extra specs ask for."""
    there = of(backend)
    for name, wanted in specs.items():
        scope, colon, key = name.rpartition(":")
        if colon and scope != SCOPE:
            continue
        if key not in there or not _matches(there[key], wanted):
            return False
    return True


def _matches(value: Any, wanted: str) -> bool:
    word, *words = wanted.split() or [""]
    operand = words[0] if words else ""
    if word == "<is>":
        return bool(value) == (operand.lower() in _TRUE)
    if word == "<or>":
        return str(value) in words[::2]
    if word in _TEXTS:
        return _TEXTS[word](str(value), operand)
    if word in _NUMBERS:
        with contextlib.suppress(ValueError):
            return _NUMBERS[word](float(value), float(operand))
        return False
    return str(value) == wanted
