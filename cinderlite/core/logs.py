# SPDX-License-Identifier: Apache-2.0
"""Log levels of this process: the one that answers. Nothing here reaches another process or host."""

from __future__ import annotations

import logging

#: Cinder's words for levels.
LEVELS = ("INFO", "WARNING", "ERROR", "DEBUG")


def levels(prefix: str) -> dict[str, str]:
    """The level in force of every logger whose name begins with `prefix`."""
    return {name: logging.getLevelName(one.getEffectiveLevel()) for name, one in _loggers(prefix).items()}


def set_level(prefix: str, level: str) -> None:
    """Set the level, one of LEVELS, of every logger whose name begins with `prefix`, until the process ends."""
    for one in _loggers(prefix).values():
        one.setLevel(level)


def _loggers(prefix: str) -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict
    return {
        name: known[name]  # type: ignore[misc]
        for name in sorted(known)
        if name.startswith(prefix) and isinstance(known[name], logging.Logger)
    }
