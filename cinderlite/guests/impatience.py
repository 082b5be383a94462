# SPDX-License-Identifier: Apache-2.0
"""The file that tells QEMU how long to wait for Ceph's monitors while it opens an image: all of the VM waits with it.

QMP has no word for that, only for a file to read in place of /etc/ceph/ceph.conf. So the file is a copy of that one,
without what opens anything, with one setting more. What a newcomer gets wrong: a time-out for OSDs must never be in it.
It would not end the opening alone, but fail every read and write of the guest's that an OSD makes wait.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import tempfile

LOG = logging.getLogger(__name__)

#: What QEMU reads when it is told nothing.
ORIGINAL = pathlib.Path("/etc/ceph/ceph.conf")
#: Its name in the directory of monitors, into which QEMU can look: it made its socket there.
NAME = "qemu-ceph.conf"
#: Ceph takes blanks and dashes in names for underscores.
_SECRET = re.compile(r"^\s*(key|keyfile|keyring)\s*=.*$", re.MULTILINE | re.IGNORECASE)


def text(original: str, seconds: int) -> str:
    """What the file says."""
    kept = _SECRET.sub("", original.replace("\\\n", ""))
    return f"# Written by cinderlite; see qmp_mount_timeout.\n{kept}\n[client]\nclient_mount_timeout = {seconds}\n"


def file(directory: pathlib.Path, seconds: int, original: pathlib.Path = ORIGINAL) -> str | None:
    """The path of the file, written anew if it has to be; None if QEMU is to read what it would without us."""
    if not seconds:
        return None
    path = directory / NAME
    try:
        wanted = text(original.read_text(encoding="utf-8") if original.exists() else "", seconds)
        if not path.exists() or path.read_text(encoding="utf-8") != wanted:
            _write(path, wanted)
    except (OSError, UnicodeDecodeError) as error:
        LOG.warning("QEMU waits for Ceph as long as its own configuration says: %s cannot be written: %s", path, error)
        return None
    return str(path)


def _write(path: pathlib.Path, wanted: str) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{NAME}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(wanted)
        pathlib.Path(partial).chmod(0o644)  # QEMU is another user as a rule.
        pathlib.Path(partial).rename(path)
    except OSError:
        pathlib.Path(partial).unlink(missing_ok=True)
        raise
