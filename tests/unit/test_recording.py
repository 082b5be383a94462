# SPDX-License-Identifier: Apache-2.0
"""What the plays of the clients count as called: the recording itself must be able to say no."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from keystoneauth1 import session

from clients.recording import Recording


class Refusal(Exception):
    status_code = 404


class Client:
    """A client whose methods do each of what methods do."""

    def asks(self) -> str:
        session.Session().request("http://nowhere.invalid", "GET")
        return "answer"

    def asks_through_another(self) -> str:
        return self.asks()

    def lists(self) -> Iterator[str]:
        yield self.asks()

    def sends_nothing(self) -> None:
        pass

    def is_refused(self) -> None:
        self.asks()
        raise Refusal("there is no such thing")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A recording of a class of its own, with nothing behind the requests."""
    monkeypatch.setattr(session.Session, "request", lambda *_words, **_named: None)
    for name in NAMES:
        monkeypatch.setattr(Client, name, vars(Client)[name])
    made = Recording(Refusal)
    for name in NAMES:
        made.watch(Client, name, name)
    return made


NAMES = [name for name in vars(Client) if not name.startswith("_")]


def test_what_sends_nothing_or_is_called_by_another_does_not_count(seen: Recording) -> None:
    client = Client()
    client.sends_nothing()
    assert client.asks_through_another() == "answer"
    assert list(client.lists()) == ["answer"]
    assert seen.called == {"asks_through_another", "lists"}


def test_a_refusal_counts_when_it_is_the_expected_one(seen: Recording) -> None:
    for status, why in ((400, "no such"), (404, "another")):
        with pytest.raises(AssertionError, match="refused with 404"), seen.refused(status, why):
            Client().is_refused()
    with pytest.raises(AssertionError, match="was not refused"), seen.refused(404, ""):
        Client().asks()
    assert "is_refused" not in seen.called
    with seen.refused(404, "No such"):
        Client().is_refused()
    assert "is_refused" in seen.called


def test_the_report_names_what_was_never_called_and_what_failed(seen: Recording) -> None:
    def first() -> None:
        Client().asks()

    def second() -> None:
        Client().is_refused()

    said = json.loads(seen.report([first, second]))
    assert said["called"] == ["asks"]
    assert said["never"] == sorted(set(NAMES) - {"asks"})
    assert said["failed"].keys() == {"second"}
    assert "no such thing" in said["failed"]["second"]
