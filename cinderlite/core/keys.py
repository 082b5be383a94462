# SPDX-License-Identifier: Apache-2.0
"""The built-in key store: secrets in the database, wrapped by a key that is in a file of each host (`keys.master`).

What a newcomer gets wrong: the row of a key and what names it are written in one transaction. So there is neither a
volume whose key is lost nor a key that nobody knows, wherever a step is cut off.
"""

from __future__ import annotations

from sqlalchemy import delete

from cinderlite import errors
from cinderlite.db import models
from cinderlite.db.session import Database
from cinderlite.keys import Note
from cinderlite.keys.master import MasterKey


class OwnKeys:
    """See `cinderlite.keys.KeyStore`."""

    def __init__(self, db: Database, master: MasterKey) -> None:
        self._db = db
        self._master = master

    def keep(self, secret: bytes, note: Note) -> str:
        """See `KeyStore.keep`."""
        key_id = models.new_id()
        with self._db.write() as session:
            session.add(models.EncryptionKey(id=key_id, wrapped=self._master.wrap(key_id, secret)))
            note(session, key_id)
        return key_id

    def secret(self, key_id: str) -> bytes:
        """See `KeyStore.secret`."""
        with self._db.read() as session:
            row = session.get(models.EncryptionKey, key_id)
        if row is None:
            raise errors.KeyNotFound(key_id)
        return self._master.open(key_id, row.wrapped)

    def forget(self, key_id: str) -> None:
        """See `KeyStore.forget`."""
        with self._db.write() as session:
            session.execute(delete(models.EncryptionKey).where(models.EncryptionKey.id == key_id))
