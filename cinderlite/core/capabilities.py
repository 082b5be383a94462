# SPDX-License-Identifier: Apache-2.0
"""What a back end can do, and whether that is what a type's extra specs ask for.

As in Cinder, a key without a scope or with the scope `capabilities` must be one that the back end has; any other scope
is somebody else's. What a newcomer gets wrong: "=" means "at least", and a text without an operator must be equal, not
alike: the capability True is asked for by "<is> True", never by "True".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from cinderlite.context import Backend

SCOPE = "capabilities"
PROTOCOL = "ceph"
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})


def of(backend: Backend) -> dict[str, Any]:
    """What is always so of a back end; its figures are Ceph's."""
    return {
        "volume_backend_name": backend.volume_backend_name,
        "vendor_name": "Open Source",
        "driver_version": "1.0.0",
        "storage_protocol": PROTOCOL,
        "thin_provisioning_support": True,
        "thick_provisioning_support": False,
        "multiattach": True,
        "qos_support": True,
        "replication_enabled": False,
        "online_extend_support": True,
    }


def satisfy(backend: Backend, specs: Mapping[str, str]) -> bool:
    """Whether a back end has all that the extra specs ask for, whatever its figures."""
    return unmet(of(backend), specs) is None


def unmet(there: Mapping[str, Any], specs: Mapping[str, str]) -> str | None:
    """The first extra spec that what is there does not satisfy; None if it does all."""
    for name, wanted in specs.items():
        scope, colon, key = name.partition(":")
        if colon and scope != SCOPE:
            continue
        key = key if colon else name
        if key not in there or not matches(there[key], wanted):
            return name
    return None


def _is_true(value: Any) -> bool:
    return str(value).strip().lower() in _TRUE


def _numbers(compare: Callable[[float, float], bool]) -> Callable[[Any, str], bool]:
    return lambda have, wanted: compare(float(have), float(wanted))


def _texts(compare: Callable[[str, str], bool]) -> Callable[[Any, str], bool]:
    return lambda have, wanted: compare(str(have), wanted)


_OPERATORS: Mapping[str, Callable[[Any, str], bool]] = {
    "=": _numbers(operator.ge), "==": _numbers(operator.eq), "!=": _numbers(operator.ne),
    ">=": _numbers(operator.ge), "<=": _numbers(operator.le),
    "s==": _texts(operator.eq), "s!=": _texts(operator.ne), "s<": _texts(operator.lt), "s<=": _texts(operator.le),
    "s>": _texts(operator.gt), "s>=": _texts(operator.ge), "<in>": _texts(operator.contains),
    "<is>": lambda have, wanted: _is_true(have) is _is_true(wanted),
}  # fmt: skip


def matches(have: Any, wanted: str) -> bool:
    """Whether a capability, None if it has no value, is what one extra spec asks for."""
    word, *rest = wanted.split() or [""]
    if word == "<or>":  # <or> one <or> another
        return have is not None and str(have) in rest[::2]
    if word not in _OPERATORS:
        return bool(have == wanted)
    if have is None or not rest:
        return False
    try:
        return _OPERATORS[word](have, rest[0])
    except ValueError:  # One of the two is no number.
        return False
