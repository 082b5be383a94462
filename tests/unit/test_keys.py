# SPDX-License-Identifier: Apache-2.0
"""Where keys are kept: what the database alone gives away, which files are no key files, and castellan's stores."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from cinderlite import app, errors
from cinderlite.cmd import api
from cinderlite.core.keys import OwnKeys
from cinderlite.db import models
from cinderlite.db.session import Database
from cinderlite.keys import KeyStore, master
from conftest import configuration

SECRET = bytes(range(32))
ONE, TWO = "11" * 32, "22" * 32


def key_file(directory: pathlib.Path, *lines: str, mode: int = 0o600) -> pathlib.Path:
    path = directory / "keys"
    path.touch(mode)
    path.chmod(mode)
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


class Nowhere(Exception):
    """What a note raises."""


def no_note(_session: Any, _key_id: str) -> None:
    """Nobody wants to know the id."""


def castellan_keys(directory: pathlib.Path, db: Database) -> Any:
    pytest.importorskip("castellan")
    from cinderlite.keys.castellan import CastellanKeys

    made: Any = CastellanKeys(configuration(directory), db.write)
    made._manager = MemoryManager()
    return made


class MemoryManager:
    """A back end of castellan in a dict, with castellan's objects and errors."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.down = False

    def _reach(self, context: Any, key_id: str | None = None) -> None:
        from castellan.common import exception

        assert context is not None
        if self.down:
            raise exception.KeyManagerError(reason="secret words")
        if key_id is not None and key_id not in self.held:
            raise exception.ManagedObjectNotFoundError(uuid=key_id)

    def store(self, context: Any, key: Any) -> str:
        self._reach(context)
        key_id = models.new_id()
        self.held[key_id] = key
        return key_id

    def get(self, context: Any, key_id: str) -> Any:
        self._reach(context, key_id)
        return self.held[key_id]

    def delete(self, context: Any, key_id: str) -> None:
        self._reach(context, key_id)
        del self.held[key_id]


@pytest.fixture(params=["database", "castellan"])
def keys(tmp_path: pathlib.Path, database: Database, databases: Any, request: pytest.FixtureRequest) -> KeyStore:
    """A store of each kind."""
    databases.fresh()
    own = OwnKeys(database, master.read(key_file(tmp_path, ONE)))
    found: KeyStore = castellan_keys(tmp_path, database) if request.param == "castellan" else own
    return found


def held(keys: Any, db: Database) -> list[Any]:
    """All that is in a store."""
    if not isinstance(keys, OwnKeys):
        return list(keys._manager.held)
    with db.read() as session:
        return list(session.scalars(select(models.EncryptionKey.wrapped)))


def test_a_secret_is_kept_found_and_forgotten(keys: KeyStore, database: Database) -> None:
    noted = []
    key_id = keys.keep(SECRET, lambda _session, key_id: noted.append(key_id))
    assert noted == [key_id]
    assert keys.keep(SECRET, no_note) != key_id
    assert keys.secret(key_id) == SECRET
    keys.forget(key_id)
    keys.forget(key_id)
    with pytest.raises(errors.KeyNotFound):
        keys.secret(key_id)
    assert len(held(keys, database)) == 1


def test_a_key_that_cannot_be_noted_is_not_kept(keys: KeyStore, database: Database) -> None:
    def refuse(_session: Any, _key_id: str) -> None:
        raise Nowhere

    with pytest.raises(Nowhere):
        keys.keep(SECRET, refuse)
    assert held(keys, database) == []


def test_a_store_that_does_not_answer_is_waited_for_and_its_words_are_not_repeated(
    tmp_path: pathlib.Path, database: Database, databases: Any
) -> None:
    databases.fresh()
    keys: Any = castellan_keys(tmp_path, database)
    key_id = keys.keep(SECRET, no_note)
    keys._manager.down = True
    for ask in (keys.secret, keys.forget, lambda _: keys.keep(SECRET, no_note)):
        with pytest.raises(errors.KeyStoreUnavailable) as caught:
            ask(key_id)
        assert "secret words" not in str(caught.value)
    assert list(keys._manager.held) == [key_id]


def test_the_service_asks_with_its_own_account(tmp_path: pathlib.Path, database: Database) -> None:
    keys: Any = castellan_keys(tmp_path, database)
    for name, value in (("auth_type", "keystone_password"), ("username", "cinderlite"), ("password", "x")):
        keys._conf.set_override(name, value, "key_manager")
    assert keys._account().username == "cinderlite"


def test_the_database_alone_opens_nothing(tmp_path: pathlib.Path, database: Database, databases: Any) -> None:
    databases.fresh()
    key_id = OwnKeys(database, master.read(key_file(tmp_path, ONE))).keep(SECRET, no_note)
    other = OwnKeys(database, master.read(key_file(tmp_path, TWO)))
    [wrapped] = held(other, database)
    assert SECRET.hex() not in wrapped
    with pytest.raises(errors.KeyStoreUnavailable, match="key_file"):
        other.secret(key_id)


def test_a_secret_does_not_stand_for_another_one(tmp_path: pathlib.Path) -> None:
    key = master.read(key_file(tmp_path, ONE))
    assert key.open("mine", key.wrap("mine", SECRET)) == SECRET
    assert key.wrap("mine", SECRET) != key.wrap("mine", SECRET)
    with pytest.raises(errors.KeyStoreUnavailable):
        key.open("mine", key.wrap("yours", SECRET))


def test_a_new_key_is_put_before_the_old_one(tmp_path: pathlib.Path) -> None:
    wrapped = master.read(key_file(tmp_path, ONE)).wrap("mine", SECRET)
    both = master.read(key_file(tmp_path, TWO, ONE))
    assert both.open("mine", wrapped) == SECRET
    assert master.read(key_file(tmp_path, TWO)).open("mine", both.wrap("mine", SECRET)) == SECRET


@contextlib.contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(errors.CinderliteError) as caught:
        yield
    assert ONE[:8] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_file_that_others_may_use_is_refused(tmp_path: pathlib.Path, mode: int) -> None:
    path = key_file(tmp_path, ONE, mode=mode)
    with refused():
        master.read(path)
    path.chmod(0o400)
    master.read(path)


@pytest.mark.parametrize("lines", [(), (ONE[2:],), (ONE, "x" + ONE[1:]), (ONE + "11",)])
def test_what_is_no_key_is_refused(tmp_path: pathlib.Path, lines: tuple[str, ...]) -> None:
    with refused():
        master.read(key_file(tmp_path, *lines))
    with refused():
        master.read(tmp_path / "missing")


def test_the_service_does_not_start_with_a_bad_key_file(tmp_path: pathlib.Path, database: Database) -> None:
    conf = configuration(tmp_path)
    api.check(conf)
    assert app.keys(conf, database) is None
    conf.set_override("key_store", "database", "encryption")
    conf.set_override("key_file", str(key_file(tmp_path, ONE, mode=0o644)), "encryption")
    with refused():
        api.check(conf)
    key_file(tmp_path, ONE)
    api.check(conf)
    assert isinstance(app.keys(conf, database), OwnKeys)
