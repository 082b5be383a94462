# SPDX-License-Identifier: Apache-2.0
"""Who is calling: whom Keystone confirmed (`keystone.py`), a password file's user, or nobody in particular (noauth).

Each strategy is a function from a WSGI environment to an `Identity`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import os
import pathlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import bcrypt

from cinderlite import errors, private

#: Key of a request's WSGI environment, which no client can set: whom Keystone confirmed.
IDENTITY = "cinderlite.identity"
#: Seconds that a password that was right is remembered: bcrypt costs 50 ms and more on purpose, on every request.
REMEMBERED = 300.0
#: Passwords remembered at a time.
REMEMBERED_MOST = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, with Keystone's words."""

    user_id: str
    project_id: str
    roles: frozenset[str]
    service_roles: frozenset[str] = frozenset()
    token: str | None = dataclasses.field(default=None, repr=False)


Strategy = Callable[[Mapping[str, Any]], Identity]


def keystone(environ: Mapping[str, Any]) -> Identity:
    """The identity that Keystone confirmed. Raises Unauthorized, and Forbidden for a token without a project."""
    who: Identity | None = environ.get(IDENTITY)
    if who is None:
        raise errors.Unauthorized("The request you have made requires authentication.")
    if not who.project_id:
        raise errors.Forbidden("what needs a project's token")
    return who


def of_headers(environ: Mapping[str, Any]) -> Identity | None:
    """The identity that keystonemiddleware confirmed; without a project it has none ("").

    The headers may be believed only behind the middleware, which removes what a client sends under those names.
    """
    user = environ.get("HTTP_X_USER_ID")
    service = environ.get("HTTP_X_SERVICE_IDENTITY_STATUS")
    # Where a service's token came along, the middleware does not ask whether the user's may do this: an invalid one is
    # to be refused, and with `delay_auth_decision` that is left to who comes after it.
    if environ.get("HTTP_X_IDENTITY_STATUS") != "Confirmed" or not user or service not in (None, "Confirmed"):
        return None
    return Identity(
        user,
        environ.get("HTTP_X_PROJECT_ID", ""),
        _words(environ.get("HTTP_X_ROLES", "")),
        _words(environ.get("HTTP_X_SERVICE_ROLES", "") if service else ""),
        environ.get("HTTP_X_AUTH_TOKEN"),
    )


def noauth(environ: Mapping[str, Any]) -> Identity:
    """Whoever asks is an administrator of the project that the token "user:project" names, "admin" without one."""
    token = environ.get("HTTP_X_AUTH_TOKEN", "")
    user, _, project = token.partition(":")
    project = project or environ.get("HTTP_X_PROJECT_ID") or "admin"
    return Identity(user or "admin", project, frozenset({"admin", "member", "reader"}))


class PasswordFile:
    """Users in a file of lines `user:bcrypt hash:project id:role,role`; read again when it changes."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, tuple[bytes, Identity]] = {}
        self._salt = os.urandom(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._load()

    def __call__(self, environ: Mapping[str, Any]) -> Identity:
        """The identity of the user whose name and password the request carries. Raises Unauthorized."""
        user, password = _credentials(environ.get("HTTP_AUTHORIZATION", ""))
        self._load()
        known = self._users.get(user)
        if known is None or not self._matches(user, password, known[0]):
            raise errors.Unauthorized("The request you have made requires authentication.")
        return known[1]

    def _matches(self, user: str, password: bytes, hashed: bytes) -> bool:
        digest = hmac.new(self._salt, user.encode() + b"\0" + hashed + b"\0" + password, hashlib.sha256).digest()
        now = time.monotonic()
        with self._lock:
            if self._right.get(digest, 0.0) > now:
                return True
        # bcrypt reads 72 bytes and newer versions refuse more rather than cut silently.
        if len(password) > 72 or not bcrypt.checkpw(password, hashed):
            return False
        with self._lock:
            self._right[digest] = now + REMEMBERED
            while len(self._right) > REMEMBERED_MOST:
                self._right.popitem(last=False)
        return True

    def _load(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise errors.CinderliteError(f"cannot read http_basic_auth_user_file: {error.strerror}") from error
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        private.refuse_open(self._path, "password hashes")
        users = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                user, hashed, project, roles = _fields(self._path, number, line)
                users[user] = hashed, Identity(user, project, _words(roles))
        with self._lock:
            self._users, self._stamp = users, stamp


def _fields(path: pathlib.Path, number: int, line: str) -> tuple[str, bytes, str, str]:
    parts = line.strip().split(":")
    if len(parts) != 4 or not parts[0] or not parts[1].startswith("$2") or not parts[2]:
        raise errors.CinderliteError(f"{path}, line {number}: not of the form user:bcrypt hash:project id:role,role")
    return parts[0], parts[1].encode(), parts[2], parts[3]


def _credentials(header: str) -> tuple[str, bytes]:
    scheme, _, encoded = header.partition(" ")
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
        if scheme.lower() == "basic" and colon:
            return user.decode(), password
    except (binascii.Error, UnicodeDecodeError):
        pass  # Answered like a wrong password below.
    raise errors.Unauthorized("The request you have made requires authentication.")


def _words(text: str) -> frozenset[str]:
    words = {word.strip().lower() for word in text.split(",") if word.strip()}
    # Keystone implies the lesser roles of the new model; a password file should not have to spell them out.
    if "admin" in words:
        words.add("member")
    if "member" in words:
        words.add("reader")
    return frozenset(words)
