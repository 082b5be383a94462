# SPDX-License-Identifier: Apache-2.0
"""The key in a file of the host that wraps the secrets in the database: neither opens anything without the other.

It also signs what the service keeps in Ceph for the case that its database is lost.

What a newcomer gets wrong: the file is as much part of a backup of the service as the database is, and must not lie
beside it. Every host of a service has the same one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import pathlib
import stat
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cinderlite import errors

_NONCE = 12
_BYTES = 32
_SIGNING = b"cinderlite records"


class MasterKey:
    """Wraps and signs with the first key and takes any, so that a new one can be put before the old."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = [AESGCM(key) for key in keys]
        # Not the keys themselves: what signs is not to be what wraps.
        self._signing = [hmac.digest(key, _SIGNING, hashlib.sha256) for key in keys]

    def wrap(self, name: str, secret: bytes) -> str:
        """A secret as it may be stored under that name."""
        nonce = os.urandom(_NONCE)
        return base64.b64encode(nonce + self._ciphers[0].encrypt(nonce, secret, name.encode())).decode()

    def open(self, name: str, wrapped: str) -> bytes:
        """The secret that was stored under that name. Raises KeyStoreUnavailable if another key wrapped it."""
        data = base64.b64decode(wrapped)
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(data[:_NONCE], data[_NONCE:], name.encode())
            except InvalidTag:
                continue
        raise errors.KeyStoreUnavailable("none of the keys in [encryption] key_file opens it")

    def sign(self, text: bytes) -> str:
        """What shows later that a text was written by who has the first key."""
        return hmac.digest(self._signing[0], text, hashlib.sha256).hex()

    def signed(self, text: bytes, signature: str) -> bool:
        """Whether `sign` made that, with any of the keys."""
        made = (hmac.digest(key, text, hashlib.sha256).hex() for key in self._signing)
        return any(hmac.compare_digest(one.encode(), signature.encode()) for one in made)


def read(path: pathlib.Path) -> MasterKey:
    """The key of a file: 32 bytes in hexadecimal, one to a line. Raises CinderliteError with what is wrong with it."""
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().split()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.CinderliteError(f"the key file {path} cannot be read: {error}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise errors.CinderliteError(f"the key file {path} may be used by others than its owner; its mode must be 0600")
    try:
        keys = [bytes.fromhex(line) for line in lines]
    except ValueError:
        keys = []
    if not keys or any(len(key) != _BYTES for key in keys):
        # What is in it is not told: it may be a key with a slip of the pen.
        raise errors.CinderliteError(f"the key file {path} must hold {2 * _BYTES} hexadecimal digits a line")
    return MasterKey(keys)
