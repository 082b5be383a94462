# SPDX-License-Identifier: Apache-2.0
"""What the RBD namespace of a project is called.

Each project has one name for ever, and no two projects the same: images are found by it, and the operator's cephx keys
have it in their rights. So neither the alphabet nor the escape may ever change; a project id that Keystone made is its
own name.
"""

from __future__ import annotations

import hashlib
import re

#: Other characters mean something in rights, in `rbd`'s words or in a URL.
_PLAIN = re.compile(r"[A-Za-z0-9_-]")
#: Ceph takes 255 bytes (osd_max_object_namespace_len).
_LONGEST = 200


def of_project(project_id: str) -> str:
    """The namespace of a project's images: its id, with any odd byte as .XX; of a long one a digest, after two dots."""
    letters = (chr(byte) for byte in project_id.encode())
    found = "".join(one if _PLAIN.match(one) else f".{ord(one):02X}" for one in letters)
    if 0 < len(found) <= _LONGEST:
        return found
    return f"..{hashlib.sha256(project_id.encode()).hexdigest()}"
