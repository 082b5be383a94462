# SPDX-License-Identifier: Apache-2.0
"""The real process with more requests than it can take, and with clients that are slow, huge or rude."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import pathlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backends.service import PASSWORD, Answer, Service

THREADS, WAITING = 2, 3
AUTHORIZATION = "Authorization: Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
BODY_MOST = 20000


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The files that keep the fakes from answering, by what they hold."""
    directory = tmp_path_factory.mktemp("held")
    return {name: directory / name for name in ("HOLD_GUESTS", "HOLD_CEPH")}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, held: dict[str, pathlib.Path]) -> Iterator[Service]:
    """A small service over fakes."""
    directory = tmp_path_factory.mktemp("api")
    options = {
        "DEFAULT": {
            "api_threads": THREADS, "api_slow_threads": THREADS, "api_max_waiting": WAITING, "api_max_wait": 1.0, "client_socket_timeout": 1.5,
            "osapi_max_request_body_size": BODY_MOST, "max_header_line": 4096, "quota_volumes": 1000,
        }
    }  # fmt: skip
    service = Service(directory, directory / "ceph.conf", directory / "sockets", options)
    service.start("backends.fakes_api", HOLD_GUESTS=str(held["HOLD_GUESTS"]), HOLD_CEPH=str(held["HOLD_CEPH"]))
    yield service
    service.stop()


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[None]:
    """Keep the fakes from answering."""
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def crowd(pool: concurrent.futures.Executor, calls: int, call: Callable[[int], Answer]) -> list[Any]:
    return [pool.submit(call, number) for number in range(calls)]


def figure(api: Service, name: str) -> float:
    """A figure of /metrics."""
    found = re.findall(rf"^{re.escape(name)} (.*)$", api.call("GET", "/metrics", user=None).text, re.MULTILINE)
    return float(found[0]) if found else 0.0


def eventually(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(answers: list[Answer]) -> list[Answer]:
    """Those that were refused, as the API says it."""
    shed = [one for one in answers if one.status == 503]
    for one in shed:
        assert one.body["serviceUnavailable"]["code"] == 503
        assert "too many requests" in one.body["serviceUnavailable"]["message"]
        assert int(one.headers["Retry-After"]) > 0
    return shed


def test_slow_work_leaves_quick_work_alone(api: Service, held: dict[str, pathlib.Path]) -> None:
    server = api.call("GET", "/v2.1/servers").body["servers"][0]["id"]
    volumes = [api.create() for _ in range(12)]
    before = figure(api, 'cinderlite_requests_shed_total{class="slow",reason="full"}')
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        with hold(held["HOLD_GUESTS"]):
            asked = crowd(pool, 12, lambda number: api.attach(server, volumes[number]))
            # Two are at work for as long as the guest is silent; the rest is told so, at once or after a second.
            eventually(lambda: sum(one.done() for one in asked) == 12 - THREADS)
            shown = api.call("GET", "/v3/volumes/detail")
            assert shown.status == 200
            assert api.call("GET", "/healthcheck", user=None).status == 200
            assert figure(api, 'cinderlite_requests_running{class="slow"}') == THREADS
            assert {one["status"] for one in shown.body["volumes"]} == {"available"}
        answers = [one.result() for one in asked]
    assert len(refused(answers)) == 12 - THREADS
    assert figure(api, 'cinderlite_requests_shed_total{class="slow",reason="full"}') == before + 12 - THREADS - WAITING
    # What was refused was not begun, what was accepted was done.
    for volume, answer in zip(volumes, answers, strict=True):
        assert api.volume(volume)["status"] == ("available" if answer.status == 503 else "in-use"), answer.text
    actions = api.call("GET", f"/v2.1/servers/{server}/os-instance-actions").body["instanceActions"]
    assert len(actions) == THREADS
    for volume, answer in zip(volumes, answers, strict=True):
        if answer.status != 503:
            api.detach(server, volume)


def test_too_many_quick_requests_are_refused_before_they_change_anything(
    api: Service, held: dict[str, pathlib.Path]
) -> None:
    before = {one["id"] for one in api.call("GET", "/v3/volumes").body["volumes"]}
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        with hold(held["HOLD_CEPH"]):
            body = {"volume": {"size": 1, "name": "crowd"}}
            asked = crowd(pool, 12, lambda _: api.call("POST", "/v3/volumes", body, version="3.50"))
            eventually(lambda: sum(one.done() for one in asked) == 12 - THREADS)
            assert api.call("GET", "/healthcheck", user=None).status == 200
            assert api.call("GET", "/v3/", user=None).status == 200
            late = api.call("GET", "/v3/volumes", version="3.50")
            assert refused([late])
            # It looks like any answer of this API.
            assert late.headers["OpenStack-API-Version"] == "volume 3.50"
            assert late.headers["x-openstack-request-id"].startswith("req-")
        answers = [one.result() for one in asked]
    assert len(refused(answers)) == 12 - THREADS
    made = {one.body["volume"]["id"] for one in answers if one.status == 202}
    assert {one["id"] for one in api.call("GET", "/v3/volumes").body["volumes"]} - before == made
    assert figure(api, 'cinderlite_requests_running{class="quick"}') == 0


# -- over bare sockets


class Wire:
    """A connection on which a test says what it likes."""

    def __init__(self, api: Service, said: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", api.port), timeout=30)
        self.say(said)
        self._stream = self.socket.makefile("rb")

    def say(self, words: bytes) -> None:
        """Send."""
        self.socket.sendall(words)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the next answer; 0 if the connection was closed instead."""
        line = self._stream.readline()
        if not line:
            return 0, {}, None
        headers = {}
        while (header := self._stream.readline().strip()) != b"":
            name, _, value = header.decode().partition(": ")
            headers[name.lower()] = value
        text = self._stream.read(int(headers.get("content-length", "0")))
        is_json = headers.get("content-type", "").startswith("application/json")
        return int(line.split()[1]), headers, json.loads(text) if is_json else text

    def close(self) -> None:
        """Close."""
        self._stream.close()
        self.socket.close()


@pytest.fixture
def wires(api: Service) -> Iterator[Callable[..., Wire]]:
    """Makes connections, which end with the test."""
    made: list[Wire] = []

    def make(said: bytes = b"") -> Wire:
        made.append(Wire(api, said))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", AUTHORIZATION, *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def posted(size: int = 0, *headers: str) -> bytes:
    """The creation of a volume, whose body has that many bytes at least."""
    body = json.dumps({"volume": {"size": 1}}).encode() + b" " * size
    return request(
        "POST", "/v3/volumes", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers, body=body
    )


def test_who_is_refused_at_the_door_may_ask_again_on_the_same_connection(
    api: Service, held: dict[str, pathlib.Path], wires: Callable[..., Wire]
) -> None:
    show = f"GET /v3/volumes HTTP/1.1\r\nHost: here\r\n{AUTHORIZATION}\r\n"
    body = {"volume": {"size": 1, "name": "crowd"}}
    kept, leaving = wires(f"{show}\r\n".encode()), wires()
    assert kept.answer()[0] == 200
    with concurrent.futures.ThreadPoolExecutor(THREADS + WAITING) as pool, hold(held["HOLD_CEPH"]):
        crowd(pool, THREADS, lambda _: api.call("POST", "/v3/volumes", body))
        eventually(lambda: figure(api, 'cinderlite_requests_running{class="quick"}') == THREADS)
        crowd(pool, WAITING, lambda _: api.call("GET", "/v3/volumes"))
        eventually(lambda: figure(api, 'cinderlite_requests_waiting{class="quick"}') == WAITING)
        for _ in range(2):
            kept.say(f"{show}\r\n".encode())
            status, headers, told = kept.answer()
            assert (status, told["serviceUnavailable"]["code"]) == (503, 503)
            assert int(headers["retry-after"]) > 0
            assert "x-openstack-request-id" not in headers  # No thread has had it.
        leaving.say(f"{show}Connection: close\r\n\r\n".encode())
        assert (leaving.answer()[0], leaving.answer()[0]) == (503, 0)
        # Its body is none of the answer to HEAD, and nothing may follow that.
        asking = wires(show.replace("GET", "HEAD").encode() + b"\r\n")
        assert (asking.answer()[0], asking.answer()[0]) == (503, 0)
        assert api.call("GET", "/healthcheck", user=None).status == 200
    eventually(lambda: figure(api, 'cinderlite_requests_running{class="quick"}') == 0)
    kept.say(f"{show}\r\n".encode())
    assert kept.answer()[0] == 200


@pytest.mark.parametrize("said", [b"", b"GET /v3/vol", posted()[:-5]], ids=["silent", "slow header", "slow body"])
def test_slow_clients_take_nobodys_place_and_are_cut_off(api: Service, wires: Callable[..., Wire], said: bytes) -> None:
    # More than there are threads of any kind.
    slow = [wires(said) for _ in range(60)]
    assert api.call("GET", "/v3/volumes").status == 200
    for wire in slow[:10]:
        wire.say(said[-1:])  # What dribbles is cut off all the same.
    ends = [wire.answer() for wire in slow]
    assert {status for status, _, _ in ends} == ({408} if said else {0})
    if said:
        assert ends[0][2]["computeFault"]["code"] == 408
        assert figure(api, 'cinderlite_connections_cut_off_total{reason="slow"}') >= 60


def test_the_slowest_make_room_for_new_connections(api: Service, wires: Callable[..., Wire]) -> None:
    for _ in range(260):
        wires(b"GET /v3/")
    assert api.call("GET", "/v3/volumes").status == 200
    assert figure(api, 'cinderlite_connections_cut_off_total{reason="crowded"}') >= 10


CHUNKED = request("POST", "/v3/volumes", "Content-Type: application/json", "Transfer-Encoding: chunked")
LARGE = {
    "said": posted(BODY_MOST),
    "announced only": request("POST", "/v3/volumes", "Content-Type: application/json", "Content-Length: 10000000000"),
    "one chunk": CHUNKED + b"%x\r\n" % (3 * BODY_MOST) + b" " * 3 * BODY_MOST,
    "many chunks": CHUNKED + (b"100\r\n" + b" " * 256 + b"\r\n") * 100 + b"0\r\n\r\n",
    "empty chunks": CHUNKED + b"1\r\n \r\n" * BODY_MOST,
}


@pytest.mark.parametrize("name", LARGE)
def test_a_huge_body_is_refused(wires: Callable[..., Wire], name: str) -> None:
    wire = wires(LARGE[name])
    status, headers, body = wire.answer()
    assert (status, body["overLimit"]["code"]) == (413, 413)
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "headers",
    [["X-Long: " + "x" * 5000], [f"X-{number}: 1" for number in range(120)], ["X-Much: " + "x" * 4000] * 30],
    ids=["a long line", "many lines", "much"],
)
def test_a_huge_header_is_refused(wires: Callable[..., Wire], headers: list[str]) -> None:
    wire = wires(request("GET", "/v3/volumes", *headers))
    assert 400 <= wire.answer()[0] < 500


def test_a_client_that_does_not_take_its_answers_is_cut_off(api: Service) -> None:
    before = figure(api, 'cinderlite_connections_cut_off_total{reason="slow"}')
    greedy = socket.socket()
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    greedy.connect(("127.0.0.1", api.port))
    asked = request("GET", "/v3/openapi.json") * 40
    with contextlib.suppress(OSError):  # The service does not take more than it answers, either.
        greedy.settimeout(1)
        greedy.sendall(asked)
    eventually(lambda: figure(api, 'cinderlite_connections_cut_off_total{reason="slow"}') > before)
    greedy.close()


def test_well_meant_requests_are_heard_in_whatever_pieces_they_come(wires: Callable[..., Wire]) -> None:
    wire = wires()
    said = posted(100)
    for piece in (said[:10], said[10:200], said[200:-1], said[-1:]):
        wire.say(piece)
        time.sleep(0.02)
    assert wire.answer()[0] == 202
    # Several at once on a kept connection, with and without a body, in one piece and cut anywhere.
    wire.say(posted(9000) + request("GET", "/v3/volumes?limit=1") + posted() + posted(7)[:30])
    assert [wire.answer()[0] for _ in range(3)] == [202, 200, 202]
    wire.say(posted(7)[30:])
    assert wire.answer()[0] == 202
    # In chunks, the last of which comes late; with an extension and a trailer.
    body = json.dumps({"volume": {"size": 1}}).encode()
    pieces = [CHUNKED, b"%x;of=2\r\n" % 4 + body[:4], b"\r\n%X\r\n" % (len(body) - 4) + body[4:] + b"\r", b"\n0\r\n"]
    for piece in [*pieces, b"X-Sum: 1\r\n", b"\r\n"]:
        wire.say(piece)
        time.sleep(0.02)
    assert wire.answer()[0] == 202
    # One who waits to be asked for the body.
    head, _, body = posted(10, "Expect: 100-continue").partition(b"\r\n\r\n")
    wire.say(head + b"\r\n\r\n")
    assert wire.answer()[0] == 100
    wire.say(body)
    assert wire.answer()[0] == 202
    wire.say(request("GET", "/v3/", "Connection: close"))
    assert wire.answer()[0] == 200
    assert wire.answer()[0] == 0


def test_what_follows_an_answer_closely_is_no_less_looked_at(
    api: Service, held: dict[str, pathlib.Path], wires: Callable[..., Wire]
) -> None:
    show = request("GET", "/v3/volumes?limit=1")

    def follow(said: bytes) -> Wire:
        """Say something at once after an answer, while the thread that gave it still listens."""
        wire = wires(show)
        assert wire.answer()[0] == 200
        wire.say(said)
        return wire

    wire = follow(show)
    for _ in range(50):
        assert wire.answer()[0] == 200
        wire.say(show)
    assert wire.answer()[0] == 200
    late = follow(posted(7)[:30])
    silent = follow(show[:10])
    assert follow(LARGE["said"]).answer()[0] == 413
    assert follow(CHUNKED + b"zz\r\n\r\n").answer()[0] == 400
    assert follow(b"nonsense\r\n\r\n").answer()[0] == 400
    late.say(posted(7)[30:])
    assert late.answer()[0] == 202
    assert silent.answer()[0] == 408
    last = follow(request("GET", "/v3/volumes?limit=1", "Connection: close"))
    assert (last.answer()[0], last.answer()[0]) == (200, 0)
    with concurrent.futures.ThreadPoolExecutor(THREADS + WAITING) as pool:
        close = wires(show)
        assert close.answer()[0] == 200
        with hold(held["HOLD_CEPH"]):
            crowd(pool, THREADS, lambda _: api.call("POST", "/v3/volumes", {"volume": {"size": 1}}))
            eventually(lambda: figure(api, 'cinderlite_requests_running{class="quick"}') == THREADS)
            crowd(pool, WAITING, lambda _: api.call("GET", "/v3/volumes"))
            eventually(lambda: figure(api, 'cinderlite_requests_waiting{class="quick"}') == WAITING)
            for _ in range(3):
                close.say(show)
                status, headers, _ = close.answer()
                assert (status, "x-openstack-request-id" in headers) == (503, False)
    close.say(show)
    assert close.answer()[0] == 200


NONSENSE = [
    b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    request("GET", "/v3/volumes", "Content-Length: -1"),
    request("GET", "/v3/volumes", "Content-Length: 1", "Content-Length: 2", body=b"x"),
    request("POST", "/v3/volumes", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    CHUNKED + b"-5\r\n\r\n",
    CHUNKED + b"zz\r\n\r\n",
    request("GET", "/v3/volumes", "Bad Header"),
    request("GET", "/v3/volumes\x00"),
]


@pytest.mark.parametrize("said", NONSENSE)
def test_what_is_no_http_is_refused(api: Service, wires: Callable[..., Wire], said: bytes) -> None:
    wire = wires(said)
    assert wire.answer()[0] in {0, 400, 501}
    assert api.call("GET", "/healthcheck", user=None).status == 200


def test_nothing_was_unforeseen(api: Service) -> None:
    log = api.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert "unforeseen" not in log
