# SPDX-License-Identifier: Apache-2.0
"""Files with secrets in them: their owner may write them, their group read them, and others nothing."""

from __future__ import annotations

import pathlib
import stat

from cinderlite import errors

#: What nobody else may do with them.
_TOO_MUCH = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


def is_open(path: pathlib.Path) -> bool:
    """Whether a file is there that more than its owner and group may use. Raises OSError if that cannot be seen."""
    return path.is_file() and bool(path.stat().st_mode & _TOO_MUCH)


def refuse_open(path: pathlib.Path, holds: str) -> None:
    """Raise CinderliteError, which says what it `holds`, if a file is open to others; one that is missing is not."""
    try:
        found = is_open(path)
    except OSError as error:
        raise errors.CinderliteError(f"{path}, which holds {holds}, cannot be looked at: {error.strerror}") from error
    if found:
        raise errors.CinderliteError(
            f"{path} holds {holds} and may not be writable by its group or open to others: chmod 640 {path}"
        )
