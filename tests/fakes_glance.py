# SPDX-License-Identifier: Apache-2.0
"""An image service in dicts behind real HTTP on loopback: what openstacksdk asks of a Glance, and no more.

What a newcomer gets wrong first: a rule added here alone proves nothing. `tests/contract/test_glance.py` runs on this
one and on a real Glance; it goes there first.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
import uuid
from typing import Any

PIECE = 2**18
_IMAGE = re.compile(r"/v2/images/([0-9a-f-]{36})(/file)?")


class FakeGlance:
    """Knobs: `down` answers 503 to everything, `cut` ends downloads after so many bytes, `full` takes no data.

    With `trickle` a download gets a quarter of a MiB every tenth of a second.
    `tokens` are those that are accepted; with none there, everybody is. What is in it: `stored` fields and `data`, by id.
    """

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.data: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.seen: list[str] = []
        self.down = False
        self.full = False
        self.trickle = False
        self.cut: int | None = None
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"glance": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def create(self, data: bytes, token: str = "", **properties: Any) -> str:
        """Make an image of these bytes (raw unless `disk_format` says otherwise) and return its id."""
        del token
        fields = {"name": "image", "disk_format": "raw", "container_format": "bare", **properties}
        made = self.add(fields)
        self.fill(made, data)
        self.stored[made].update({name: fields[name] for name in ("status", "size") if name in fields})
        return made

    def image(self, image_id: str, token: str = "") -> dict[str, Any]:
        """What it knows of an image; nothing when there is no such image."""
        del token
        return self.stored.get(image_id, {})

    def images(self, token: str = "") -> list[dict[str, Any]]:
        """All images."""
        del token
        return list(self.stored.values())

    def add(self, fields: dict[str, Any]) -> str:
        """Announce an image."""
        image_id = str(fields.get("id") or uuid.uuid4())
        defaults = {"visibility": "shared", "protected": False, "min_disk": 0, "min_ram": 0, "owner": None}
        self.stored[image_id] = {
            **defaults, **fields, "id": image_id, "status": "queued", "size": None, "checksum": None,
            "os_hash_algo": None, "os_hash_value": None, "updated_at": "2026-01-31T12:00:00Z", "tags": [],
        }  # fmt: skip
        return image_id

    def fill(self, image_id: str, data: bytes) -> None:
        """Give an image its data."""
        self.data[image_id] = data
        self.stored[image_id].update(
            status="active", size=len(data), checksum=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            os_hash_algo="sha512", os_hash_value=hashlib.sha512(data).hexdigest(),
        )  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    glance: FakeGlance

    def log_message(self, *_arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path.strip("/") in ("", "v2", "versions") and not self.glance.down:
            here = {"rel": "self", "href": f"{self.glance.url}/v2/"}
            self._say(300, {"versions": [{"id": "v2.15", "status": "CURRENT", "links": [here]}]})
        elif self._refused():
            return
        elif url.path == "/v2/images":
            query = dict(urllib.parse.parse_qsl(url.query))
            found = [one for one in self.glance.stored.values() if query.get("name") in (None, one["name"])]
            self._say(200, {"images": found})
        elif (match := _IMAGE.fullmatch(url.path)) is None or match[1] not in self.glance.stored:
            self._say(404, None)
        elif match[2]:
            self._send(self.glance.data.get(match[1], b""))
        else:
            self._say(200, self.glance.stored[match[1]])

    def do_POST(self) -> None:
        body = json.loads(self._body())
        if self._refused():
            return
        if body.get("id") in self.glance.stored:
            self._say(409, None)
        else:
            self._say(201, self.glance.stored[self.glance.add(body)])

    def do_PUT(self) -> None:
        data = self._body()
        match = _IMAGE.fullmatch(self.path)
        if self._refused():
            return
        if match is None or match[1] not in self.glance.stored:
            self._say(404, None)
        elif self.glance.full or self.glance.stored[match[1]]["status"] != "queued":
            self._say(413 if self.glance.full else 409, None)
        else:
            self.glance.fill(match[1], data)
            self._say(204, None)

    def do_DELETE(self) -> None:
        match = _IMAGE.fullmatch(self.path)
        if self._refused():
            return
        if match is None or match[1] not in self.glance.stored:
            self._say(404, None)
        elif self.glance.stored[match[1]]["protected"]:
            self._say(403, None)
        else:
            del self.glance.stored[match[1]]
            self.glance.data.pop(match[1], None)
            self._say(204, None)

    def _refused(self) -> bool:
        token = self.headers.get("X-Auth-Token", "")
        self.glance.seen.append(token)
        if self.glance.down:
            self._say(503, None)
        elif self.glance.tokens and token not in self.glance.tokens:
            self._say(401, None)
        else:
            return False
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = bytearray()
        while length := int(self.rfile.readline(), 16):
            found += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(found)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        data = data if self.glance.cut is None else data[: self.glance.cut]
        with contextlib.suppress(ConnectionError):  # Whoever asked may be gone.
            for offset in range(0, len(data), PIECE):
                self.wfile.write(data[offset : offset + PIECE])
                if self.glance.trickle:
                    time.sleep(0.1)
        self.close_connection = self.glance.cut is not None

    def _say(self, status: int, body: Any) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
