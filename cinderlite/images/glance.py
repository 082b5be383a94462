# SPDX-License-Identifier: Apache-2.0
"""Talking to Glance through openstacksdk: look, create, read, write, delete.

What a newcomer gets wrong first: who asks matters. A request is answered with the caller's own token, so that Glance
decides what he may see, and with nothing else if he has one. A job outlives the request; it borrows the token as long
as this process lives, and no token is ever stored. After a restart, or when the token has lapsed, the service's own
account does the rest of what the caller was allowed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
import random
import re
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from cinderlite import errors

__all__ = ["Glance", "Image", "Location"]

T = TypeVar("T")
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: Bytes that are asked of a connection at a time.
_READ = 2**20
#: Tokens of requests that are remembered for their jobs.
_LENT_MOST = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """Where Glance's RBD store keeps an image: a snapshot of an image in a pool of a cluster."""

    fsid: str
    pool: str
    image: str
    snap: str


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """What Glance says of an image; `fields` is all of it, under Glance's own names. Sizes in bytes."""

    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its UUID."""
        return str(self.fields["id"])

    @property
    def status(self) -> str:
        """Glance's word for its state; `active` is an image with data."""
        return str(self.fields.get("status"))

    @property
    def disk_format(self) -> str:
        """What is in its file, as its owner says."""
        return str(self.fields.get("disk_format") or "")

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return int(self.fields.get("size") or 0)

    @property
    def needs_gigabytes(self) -> int:
        """The least size of a volume for it, in GiB, as far as Glance knows."""
        most = max(self.size, int(self.fields.get("virtual_size") or 0))
        return max(-(-most // 2**30), int(self.fields.get("min_disk") or 0), 1)

    @property
    def urls(self) -> list[str]:
        """Where its file is, if Glance tells."""
        found = [self.fields.get("direct_url"), *(one.get("url") for one in self.fields.get("locations") or [])]
        return [url for url in dict.fromkeys(found) if url]

    @property
    def in_rbd(self) -> Location | None:
        """Its place in a Ceph cluster.

        Only under its own id, as Glance's RBD store names images: users may be allowed to set locations (OSSN-0065),
        and any other name could be somebody else's image.
        """
        for url in self.urls:
            parts = [urllib.parse.unquote(part) for part in url.removeprefix("rbd://").split("/")]
            if url.startswith("rbd://") and len(parts) == 4 and parts[2] == self.id and all(parts):
                return Location(*parts)
        return None


class Glance:
    """The image service, for all threads of a process; it is first asked when an image is needed.

    `servers` are its addresses, or none to find it in the catalogue by `catalog` (type, name, interface). `service`
    makes the service's own way to log in. Any method may raise GlanceUnavailable, GlanceRefused or ImageUnknown.
    `asker` is the id of the request on whose behalf it is asked.
    """

    def __init__(
        self,
        *,
        servers: Sequence[str],
        catalog: tuple[str, str, str],
        region: str | None,
        retries: int,
        direct_schemes: Sequence[str],
        service: Callable[[], Any],
        session: Mapping[str, Any],
    ) -> None:
        self._servers = [url.rstrip("/").removesuffix("/v2") for url in servers]
        self._catalog = catalog
        self._region = region
        self._retries = retries
        self._direct_schemes = frozenset(direct_schemes)
        self._login = service
        self._options = dict(session)
        self._lock = threading.Lock()
        self._own: Any = None
        self._lent: collections.OrderedDict[str, str] = collections.OrderedDict()

    def __repr__(self) -> str:
        return f"<Glance {self._servers or self._catalog}>"

    # -- who asks

    def lend(self, request_id: str, token: str | None) -> None:
        """Remember the token of a request for what is asked on its behalf, in this process only."""
        if token is None:
            return
        with self._lock:
            self._lent[request_id] = token
            while len(self._lent) > _LENT_MOST:
                self._lent.popitem(last=False)

    # -- what is asked

    def show(self, asker: str, image_id: str) -> Image:
        """What Glance says of an image. Raises ImageUnknown."""
        return self._ask(asker, lambda images: _image(images.get_image(image_id)))

    def find(self, asker: str, reference: str, visible: Callable[[Image], bool]) -> Image:
        """The image of an id, or of a URL that ends in one, or with that name, as the caller sees it.

        `visible` says what he may see of what the service sees, if he has no token. Raises ImageUnknown, Conflict.
        """
        tail = reference.rpartition("/")[2].lower()
        found: list[Image] = []
        if _ID.fullmatch(tail):
            with contextlib.suppress(errors.ImageUnknown):
                found = [self._ask(asker, lambda images: _image(images.get_image(tail)), himself=True)]
        if not found:
            found = self._ask(
                asker, lambda images: [_image(one) for one in images.images(name=reference)], himself=True
            )
        found = [one for one in found if asker in self._lent or visible(one)]
        if len(found) > 1:
            raise errors.Conflict(f"Multiple matches found for '{reference}', use an ID to be more specific.")
        if not found:
            raise errors.ImageUnknown
        return found[0]

    def create(self, asker: str, image_id: str, owner: str, **fields: Any) -> Image:
        """Announce an image of that id, whose data are still to come; `owner` is the project whose it is to be."""
        from openstack.image.v2 import image

        if asker not in self._lent:
            fields["owner"] = owner  # The service's account is of another project.
        return self._ask(
            asker, lambda images: _image(image.Image.new(id=image_id, **fields).create(images)), himself=True
        )

    def upload(self, asker: str, image_id: str, data: Callable[[], Iterable[bytes]], size: int) -> None:
        """Give an image its data, `size` bytes, which `data` begins anew for each try. What it raises is passed on."""
        from openstack import exceptions
        from openstack.image.v2 import image

        def put(images: Any) -> None:
            # The library would go on with what is left of the data when it tries again.
            images.connect_retries = images.status_code_retries = 0
            exceptions.raise_from_response(image.Image.new(id=image_id).upload(images, data=data(), size=size))

        self._ask(asker, put)

    def download(self, asker: str, image: Image) -> Generator[bytes]:
        """The bytes of an image's file, checked against its hash when the last one has been read."""
        path = self._local(image)
        if path is not None:
            with path.open("rb") as file:
                yield from iter(lambda: file.read(_READ), b"")
            return
        answer = self._ask(asker, lambda images: images.download_image(image.id, stream=True))
        hasher, expected = _hasher(image)
        with _translated(), contextlib.closing(answer):
            for piece in answer.iter_content(_READ):
                hasher.update(piece)
                yield piece
        if expected is not None and hasher.hexdigest() != expected:
            raise errors.ImageUnacceptable(image.id, "its data do not have the hash that the image service has noted")

    def delete(self, asker: str, image_id: str) -> None:
        """Remove an image; no trace of it is fine."""
        with contextlib.suppress(errors.ImageUnknown):
            self._ask(asker, lambda images: images.delete_image(image_id, ignore_missing=True))

    # -- within

    def _local(self, image: Image) -> pathlib.Path | None:
        """The image's file, if it can be read here and the operator allows that."""
        for url in image.urls:
            parsed = urllib.parse.urlsplit(url)
            if parsed.scheme == "file" and "file" in self._direct_schemes:
                path = pathlib.Path(urllib.parse.unquote(parsed.path))
                if path.is_file():
                    return path
        return None

    def _ask(self, asker: str, question: Callable[[Any], T], *, himself: bool = False) -> T:
        """Put a question as the caller; if his token has lapsed as the service, unless he must be asked `himself`."""
        with self._lock:
            token = self._lent.get(asker)
        if token is not None:
            try:
                return self._ask_servers(question, lambda: _token(token))
            except errors.GlanceLoggedOut:
                if himself:
                    raise
                with self._lock:
                    self._lent.pop(asker, None)
        return self._ask_servers(question, None)

    def _ask_servers(self, question: Callable[[Any], T], login: Callable[[], Any] | None) -> T:
        servers = random.sample(self._servers, len(self._servers)) or [self._in_catalog()]
        for server in servers:
            try:
                with _translated():
                    return question(self._images(server, login))
            except errors.GlanceUnavailable:
                if server == servers[-1]:
                    raise
        raise AssertionError("there is always a server")

    def _images(self, server: str, login: Callable[[], Any] | None) -> Any:
        """openstacksdk's image service at an address."""
        from openstack import connection

        session = self._service_session() if login is None else self._session(login())
        return connection.Connection(
            session=session, image_endpoint_override=server, image_api_version="2",
            image_connect_retries=self._retries, image_status_code_retries=self._retries,
        ).image  # fmt: skip

    def _service_session(self) -> Any:
        with self._lock:
            if self._own is None:
                self._own = self._session(self._login())
            return self._own

    def _session(self, login: Any) -> Any:
        from keystoneauth1 import session

        return session.Session(auth=login, **self._options)

    def _in_catalog(self) -> str:
        kind, name, interface = self._catalog
        with _translated():
            url = self._service_session().get_endpoint(
                service_type=kind, service_name=name or None, interface=interface.removesuffix("URL"),
                region_name=self._region,
            )  # fmt: skip
        if url is None:
            raise errors.GlanceUnavailable("it is not in the catalogue")
        return str(url).rstrip("/").removesuffix("/v2")


def _token(token: str) -> Any:
    from keystoneauth1 import token_endpoint

    return token_endpoint.Token(None, token)


def _image(found: Any) -> Image:
    fields = dict(found.to_dict(computed=False, headers=False, original_names=True, ignore_none=True))
    return Image({**fields.pop("properties", {}), **fields})


def _hasher(image: Image) -> tuple[Any, str | None]:
    """How to check an image's data, and what must come out; the older MD5 where Glance knows nothing better."""
    algorithm, expected = image.fields.get("os_hash_algo"), image.fields.get("os_hash_value")
    if expected and algorithm in hashlib.algorithms_available:
        return hashlib.new(str(algorithm), usedforsecurity=False), str(expected)
    return hashlib.md5(usedforsecurity=False), image.fields.get("checksum")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what the libraries raise into ours. Their texts may quote headers, so only their kind is passed on."""
    import requests
    from keystoneauth1 import exceptions as login
    from openstack import exceptions

    try:
        yield
    except exceptions.NotFoundException:
        raise errors.ImageUnknown from None
    except exceptions.HttpException as error:
        status = int(error.status_code or 500)
        if status == 401:
            raise errors.GlanceLoggedOut from None
        if status >= 500:
            raise errors.GlanceUnavailable(f"it answers {status}") from None
        raise errors.GlanceRefused(f"{status} {str(error.details or '')[:300]}".strip()) from None
    except login.Unauthorized:
        raise errors.GlanceLoggedOut from None
    except (login.ClientException, exceptions.SDKException, requests.RequestException) as error:
        raise errors.GlanceUnavailable(type(error).__name__) from error
