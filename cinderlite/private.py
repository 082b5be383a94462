# SPDX-License-Identifier: Apache-2.0
"""Who may use which file: one with secrets its owner may write, its group read, and others not at all.

What a newcomer gets wrong: operators run `cinderlite-manage` as root, and the service, which is somebody else, must be
able to go on with what that made.
"""

from __future__ import annotations

import os
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


def hand_over(path: pathlib.Path) -> None:
    """Give what root made to whom its directory belongs, as SQLite does with its journals."""
    if os.geteuid() == 0:
        whose = path.parent.stat()
        # Not what a link leads to: who owns the directory could have root give it any file.
        os.chown(path, whose.st_uid, whose.st_gid, follow_symlinks=False)
