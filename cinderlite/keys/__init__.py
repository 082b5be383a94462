# SPDX-License-Identifier: Apache-2.0
"""Where the secrets are kept that open encrypted volumes, and what a volume begins with that one opens (`luks`).

What a newcomer gets wrong: a key's id is no secret and its row opens nothing. The id is shown by the API, copied into
records of backups and told to a Nova; the secret is in the store only, and for the moment of an attach in QEMU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

#: Writes a key's id where it belongs, in the transaction that it gets; raises if that is not to be any more.
Note = Callable[[Any, str], None]


class KeyStore(Protocol):
    """Secrets by id. Any method may raise KeyStoreUnavailable."""

    def keep(self, secret: bytes, note: Note) -> str:
        """Store a secret and have `note` write the id down, both or neither; that id. Raises what `note` does."""

    def secret(self, key_id: str) -> bytes:
        """The secret of that key. Raises KeyNotFound."""

    def forget(self, key_id: str) -> None:
        """Destroy a key, and with it whatever only it opens; done too if there is none."""
