# SPDX-License-Identifier: Apache-2.0
"""Keys in what castellan can talk to: Barbican, Vault, or any class that its option `[key_manager] backend` names.

The only place that imports castellan, and late. What a newcomer gets wrong: the service asks with its own account, so
in a Barbican the keys are its project's; a Nova that is to open the volumes must be let read them there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from cinderlite import errors
from cinderlite.keys import Note


class CastellanKeys:
    """See `KeyStore`. `conf` is the configuration, with castellan's own options; `write` is the database's."""

    def __init__(self, conf: Any, write: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        from castellan import key_manager
        from castellan.common import utils

        conf.register_opts(utils.credential_opts, group=utils.OPT_GROUP)
        self._manager = key_manager.API(conf)
        self._conf = conf
        self._write = write

    def _account(self) -> Any:
        """Who asks: the account of [key_manager], or nobody in particular for what knows no accounts, such as Vault."""
        from castellan.common import utils
        from oslo_context.context import RequestContext

        if self._conf.key_manager.auth_type is None:
            return RequestContext(overwrite=False)
        return utils.credential_factory(conf=self._conf)

    def keep(self, secret: bytes, note: Note) -> str:
        """See `KeyStore.keep`. Who is killed half way leaves a key behind that nobody knows of."""
        from castellan.common.objects.symmetric_key import SymmetricKey

        with _translated():
            key = SymmetricKey("AES", len(secret) * 8, secret, name="cinderlite")
            key_id = str(self._manager.store(self._account(), key))
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(self.forget, key_id)
            with self._write() as session:
                note(session, key_id)
            otherwise.pop_all()
        return key_id

    def secret(self, key_id: str) -> bytes:
        """See `KeyStore.secret`."""
        with _translated(key_id):
            secret = self._manager.get(self._account(), key_id).get_encoded()
        if secret is None:
            raise errors.KeyNotFound(key_id)
        return bytes(secret)

    def forget(self, key_id: str) -> None:
        """See `KeyStore.forget`."""
        with contextlib.suppress(errors.KeyNotFound), _translated(key_id):
            self._manager.delete(self._account(), key_id)


@contextlib.contextmanager
def _translated(key_id: str = "") -> Iterator[None]:
    from castellan.common import exception
    from keystoneauth1.exceptions import ClientException
    from requests import RequestException

    try:
        yield
    except exception.ManagedObjectNotFoundError:
        raise errors.KeyNotFound(key_id) from None
    except (exception.CastellanException, ClientException, RequestException) as error:
        # Its words may repeat what was sent.
        raise errors.KeyStoreUnavailable(type(error).__name__) from None
