# SPDX-License-Identifier: Apache-2.0
"""API versions as values, windows of them, and the negotiation of the version headers of both services.

A version is data on the thing that changed: `since="3.48"` on a field or an operation. Nothing asks "which version
is this" in an if; the few rules that do change behaviour reach `core` as ordinary arguments.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple, Protocol, Self

from cinderlite import errors

# Python refuses to read a number of thousands of digits.
_FORM = re.compile(r"([1-9][0-9]{0,8})\.([1-9][0-9]{0,8}|0)")


class Headers(Protocol):
    """A request's headers, whatever holds them."""

    def get(self, key: str) -> str | None:
        """The value of a header, None without it."""


class Version(NamedTuple):
    """A major and a minor number; compares as one expects."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The version written as "3.27". Raises BadRequest."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise errors.BadRequest(
                f"API Version String '{text[:64]}' is of invalid format. Must be of format MajorNum.MinorNum."
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A range of versions, both ends included; an open end is None."""

    since: Version | None = None
    until: Version | None = None

    def __contains__(self, version: Version) -> bool:
        return (self.since is None or self.since <= version) and (self.until is None or version <= self.until)


def window(since: str | None = None, until: str | None = None) -> Window:
    """A window from its ends as text; refuses one that is empty."""
    ends = Window(Version.parse(since) if since else None, Version.parse(until) if until else None)
    if ends.since and ends.until and ends.until < ends.since:
        raise ValueError(f"no version lies between {since} and {until}")
    return ends


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """What distinguishes the two APIs at the edge: names, version range, headers."""

    name: str
    type: str
    prefix: str
    version_id: str
    minimum: Version
    maximum: Version
    #: Older header that carries the version too; "" for none.
    legacy_header: str
    #: Whether a missing or odd version item in the header counts as an error (Cinder) or as absent (Nova).
    strict_header: bool
    updated: str
    #: Whether each of its operations may wait for a guest.
    slow: bool = False

    def negotiate(self, headers: Headers) -> Version:
        """The version a request asks for. Raises BadRequest on nonsense, VersionOutOfRange on one not served."""
        text = self._asked(headers)
        return self.minimum if text is None else self.version(text)

    def version(self, text: str) -> Version:
        """The version of that number, or the latest. Raises as `negotiate` does."""
        if text == "latest":
            return self.maximum
        version = Version.parse(text)
        if not self.minimum <= version <= self.maximum:
            raise errors.VersionOutOfRange(version, self.minimum, self.maximum)
        return version

    def _asked(self, headers: Headers) -> str | None:
        value = headers.get("OpenStack-API-Version")
        if value is None:
            return headers.get(self.legacy_header) if self.legacy_header else None
        for item in value.split(","):
            name, _, text = item.strip().partition(" ")
            if name.lower() == self.type:
                return text.strip()
        if self.strict_header:
            raise errors.BadRequest(f"The header OpenStack-API-Version names no version of service type {self.type}.")
        return headers.get(self.legacy_header) if self.legacy_header else None

    def headers(self, version: Version | None) -> dict[str, str]:
        """Headers of an answer: the version that was used, and what the answer varies with."""
        names = ["OpenStack-API-Version", *([self.legacy_header] if self.legacy_header else [])]
        answer = {"Vary": ", ".join(names)}
        if version is not None:
            answer["OpenStack-API-Version"] = f"{self.type} {version}"
            if self.legacy_header:
                answer[self.legacy_header] = str(version)
        return answer
