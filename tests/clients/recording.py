# SPDX-License-Identifier: Apache-2.0
"""Notes which of a client's methods really had a conversation with the service; runs inside the clients' environment.

A method counts when it was called from outside, sent a request, and returned or was refused as the play expected. What
a method calls in turn does not count, nor does one that sends nothing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keystoneauth1 import session


class Recording:
    """What was called, of what there is to call; `error` is the client's class of refusals by HTTP."""

    def __init__(self, error: type[Exception]) -> None:
        self.called: set[str] = set()
        self.known: set[str] = set()
        self._error = error
        self._inside = False
        self._requests = 0
        self._refused = ""
        _wrap(session.Session, "request", self._counted)

    def watch(self, owner: Any, name: str, known_as: str) -> None:
        """Note each call of a function of a class, or of a method of an object."""
        self.known.add(known_as)
        _wrap(owner, name, functools.partial(self._watched, known_as=known_as))

    @contextlib.contextmanager
    def refused(self, status: int, why: str) -> Iterator[None]:
        """What is done inside is refused with a status and a text that has `why` in it."""
        self._refused = ""
        try:
            yield
        except self._error as raised:
            found, said = getattr(raised, "status_code", None) or getattr(raised, "code", None), str(raised)
        else:
            raise AssertionError(f"was not refused with {status}")
        assert (found, why.lower() in said.lower()) == (status, True), f"refused with {found}: {said}"
        assert self._refused, "what was refused is not watched"
        self.called.add(self._refused)

    def report(self, parts: Iterable[Callable[[], None]]) -> str:
        """Play each part, whatever became of those before it, and say in JSON what was called, what never, what failed."""
        failed = {}
        for part in parts:
            try:
                part()
            except Exception as error:  # noqa: BLE001 - told, with all the others
                failed[part.__name__] = _where(error)
        never = sorted(self.known - self.called)
        return json.dumps({"called": sorted(self.called), "never": never, "failed": failed})

    def _watched(self, function: Callable[..., Any], known_as: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*words: Any, **named: Any) -> Any:
            if self._inside:
                return function(*words, **named)
            before, self._inside = self._requests, True
            try:
                result = function(*words, **named)
                if inspect.isgenerator(result):  # Nothing is asked before the first step.
                    result = iter(list(result))
            except self._error:
                self._refused = known_as if self._requests > before else ""
                raise
            finally:
                self._inside = False
            if self._requests > before:
                self.called.add(known_as)
            return result

        return call

    def _counted(self, send: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(send)
        def call(*words: Any, **named: Any) -> Any:
            self._requests += 1
            return send(*words, **named)

        return call


def _wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, wrapper(getattr(owner, name)))


def _where(error: BaseException) -> str:
    """What failed, and in which line of the play."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "play_" in frame.filename]
    lines = [f"{frame.name}, line {frame.lineno}: {frame.line}" for frame in frames]
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])


def until(found: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """Look again and again until there is something; what was found. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
    return result
