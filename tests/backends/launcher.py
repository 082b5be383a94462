# SPDX-License-Identifier: Apache-2.0
"""Somebody who starts servers, for tests that make their own: what a Nova does and cinderlite does not.

It answers POST and DELETE of servers and their actions by starting and ending real QEMU guests, and passes every other
request on to cinderlite's compute API. As an orchestrator is to do it, it starts them with what cinderlite tells it of
their volumes. The guests have neither network nor operating system: their firmware looks for something to boot from,
and their SCSI controller lets a disk go without asking it.
"""

from __future__ import annotations

import http.client
import http.server
import json
import pathlib
import re
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from backends.keystone import Keystone
from backends.service import Service
from lab.guest import Guest
from lab.process import LabError, wait

#: The size of every server.
FLAVOR = "lab"
_SERVERS = re.compile(r"/v2\.1(?:/[0-9a-f]{32})?/servers")
_SERVER = re.compile(_SERVERS.pattern + r"/([0-9a-f-]{36})(/action|/ips)?")
#: Headers that are each connection's own.
_OWN = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})
_VERSIONS = ("OpenStack-API-Version", "X-OpenStack-Nova-API-Version")
Reply = tuple[int, Mapping[str, str], bytes]


class Launcher:
    """Listens on a loopback port for what is meant for `service`, which is told of the guests by files in `sockets`."""

    def __init__(self, directory: pathlib.Path, sockets: pathlib.Path, service: Service) -> None:
        self.directory = directory
        self.sockets = sockets
        self.service = service
        self.keystone: Keystone | None = None
        self.guests: dict[str, Guest] = {}
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._answer))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def start(self, keystone: Keystone) -> None:
        """Listen from now on."""
        self.keystone = keystone
        self._thread.start()

    def stop(self) -> list[str]:
        """End everything; the ids of the servers that nobody had deleted."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join(10)
        self._http.server_close()
        left = list(self.guests)
        for guest in self.guests.values():
            guest.forget()
        return left

    # -- requests

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        plain = path.partition("?")[0]
        found = _SERVER.fullmatch(plain)
        if method == "POST" and _SERVERS.fullmatch(plain):
            return self._create(headers, json.loads(body)["server"])
        if found and method == "GET" and found[2] == "/ips":
            return _json(200, {"addresses": {}})
        if found and (method == "DELETE" or found[2] == "/action"):
            # Whose it is cinderlite knows.
            shown = self._pass_on("GET", plain.removesuffix("/action"), headers, b"")
            if shown[0] != 200:
                return shown
            if method == "DELETE":
                return self._delete(headers, json.loads(shown[2])["server"])
            return self._act(found[1], json.loads(body))
        return self._pass_on(method, path, headers, body)

    def _pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=120)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in _OWN}
            connection.request(method, path, body or None, kept)
            answer = connection.getresponse()
            said = {name: value for name, value in answer.getheaders() if name.lower() not in _OWN}
            return answer.status, said, answer.read()
        finally:
            connection.close()

    # -- servers

    def _create(self, headers: Mapping[str, str], wanted: dict[str, Any]) -> Reply:
        token = headers["X-Auth-Token"]
        who = self._who(token)
        if "member" not in {role["name"] for role in who["roles"]}:
            return _fault(403, "forbidden", "only members start servers")
        made = [self._start(headers, who["project"]["id"], wanted) for _ in range(int(wanted.get("min_count", 1)))]
        if wanted.get("return_reservation_id"):
            return _json(202, {"reservation_id": f"r-{made[0][:8]}"})
        href = {"rel": "self", "href": f"{self.url}/v2.1/servers/{made[0]}"}
        told = {
            "id": made[0], "links": [href, {**href, "rel": "bookmark"}], "security_groups": [],
            "OS-DCF:diskConfig": "MANUAL", "adminPass": "none",
        }  # fmt: skip
        return _json(202, {"server": told})

    def _start(self, headers: Mapping[str, str], project: str, wanted: Mapping[str, Any]) -> str:
        """Start one server with what it is to have from the start; its id."""
        server = str(uuid.uuid4())
        guest = Guest(
            self.directory, f"vm-{server[:8]}", project=project, sockets=self.sockets, uuid=server,
            ports=0, scsi=True, memory=32, guest_os=False, kept=True, title=wanted["name"],
        )  # fmt: skip
        guest.announce()
        self.guests[server] = guest
        devices = [*wanted.get("block_device_mapping", ()), *wanted.get("block_device_mapping_v2", ())]
        volumes = [one for one in devices if one.get("destination_type", "volume") == "volume"]
        for one in volumes:
            self._attach(headers, server, one)
        if volumes:
            self._launch(guest)
        else:
            guest.start()
        return server

    def _launch(self, guest: Guest) -> None:
        """Start a server with the volumes that it has."""
        assert self.keystone is not None
        asked = {"X-Auth-Token": self.keystone.token("admin", "admin")}
        with tempfile.TemporaryDirectory() as secrets:
            path = f"/v2.1/servers/{guest.uuid}/launch-arguments?bus=scsi0.0&directory={secrets}"
            status, _headers, said = self._pass_on("GET", path, asked, b"")
            if status != 200:
                raise LabError(f"nobody says how {guest.title} is started: {said.decode()}")
            told = json.loads(said)["launch_arguments"]
            for one in told["secrets"]:
                pathlib.Path(one["file"]).write_text(one["content"], encoding="ascii")
                pathlib.Path(one["file"]).chmod(0o600)
            guest.arguments = told["arguments"]
            guest.start()

    def _attach(self, headers: Mapping[str, str], server: str, wanted: Mapping[str, Any]) -> None:
        """Plug a volume in."""
        path = f"/v2.1/servers/{server}/os-volume_attachments"
        attachment = {
            "volumeId": wanted.get("volume_id") or wanted["uuid"],
            "delete_on_termination": wanted.get("delete_on_termination", False),
        }
        asked = {
            "X-Auth-Token": headers["X-Auth-Token"],
            "Content-Type": "application/json",
            "OpenStack-API-Version": "compute 2.79",
        }
        done = self._pass_on("POST", path, asked, json.dumps({"volumeAttachment": attachment}).encode())
        if done[0] != 200:
            raise LabError(f"a server cannot have what it is to have: {done[2].decode()}")

    def _delete(self, headers: Mapping[str, str], server: Mapping[str, Any]) -> Reply:
        """End a server; whoever asks for it no more may take its volumes for free, so it is answered when they are."""
        guest = self.guests.pop(server["id"], None)
        if guest is None:
            return _fault(404, "itemNotFound", "it was not started here")
        guest.stop()
        guest.forget()
        for one in server["os-extended-volumes:volumes_attached"]:
            wait(lambda: self._is_free(headers, one["id"], server["id"]), timeout=40, what="volumes to be free")  # noqa: B023
        return 204, {}, b""

    def _is_free(self, headers: Mapping[str, str], volume: str, server: str) -> bool:
        shown = self._pass_on("GET", f"/v3/volumes/{volume}", {"X-Auth-Token": headers["X-Auth-Token"]}, b"")
        if shown[0] != 200:
            return True
        found = json.loads(shown[2])["volume"]
        return found["status"] != "detaching" and server not in [one["server_id"] for one in found["attachments"]]

    def _act(self, server: str, action: Mapping[str, Any]) -> Reply:
        guest = self.guests[server]
        if not action.keys() & {"os-stop", "os-start", "reboot"}:
            return _fault(400, "badRequest", f"no such action: {sorted(action)}")
        if "os-start" not in action:
            guest.stop()
        if "os-stop" not in action:
            self._launch(guest)
        return 202, {}, b""

    def _who(self, token: str) -> Any:
        """Whom a token stands for, as Keystone says to itself."""
        assert self.keystone is not None
        request = urllib.request.Request(
            f"{self.keystone.auth_url}/auth/tokens", headers={"X-Auth-Token": token, "X-Subject-Token": token}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["token"]


def _json(status: int, value: Any) -> Reply:
    headers = {"Content-Type": "application/json", "x-openstack-request-id": f"req-{uuid.uuid4()}"}
    return status, headers, json.dumps(value).encode()


def _fault(status: int, name: str, message: str) -> Reply:
    return _json(status, {name: {"code": status, "message": message}})


def _handler(answer: Callable[[str, str, Mapping[str, str], bytes], Reply]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, headers, said = answer(self.command, self.path, dict(self.headers.items()), body)
            except (LabError, OSError, http.client.HTTPException, LookupError, ValueError) as error:
                status, headers, said = _fault(500, "computeFault", f"the launcher: {error!r}")
            self.send_response(status)
            # What cinderlite answered names its version; what was answered here is of the one that was asked for.
            versions = {name: self.headers[name] for name in _VERSIONS if name in self.headers}
            for name, value in {**versions, **headers, "Content-Length": str(len(said))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 -- the library's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the library's name
            """Say nothing."""

    return Handler
