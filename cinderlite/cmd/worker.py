# SPDX-License-Identifier: Apache-2.0
"""gunicorn's threaded worker, which gives a connection to a thread only when all of its request has come in.

gunicorn's own lets a thread read from the client without a time-out, so a few clients that send a byte now and then
hold all threads; and its main loop waits up to 2 s for each client to close its end. Here the main loop reads, without
waiting, and lets go of clients that do not close; a thread reads only what was heard and never waits for a client's
bytes. What is late, too large or too much is answered here, in the API's form, without a thread.

When it is told to end, who has connected is answered, and who comes later is refused at once and can ask another host;
gunicorn itself keeps the port open as long as a request is under way and takes nobody from it. Meanwhile what goes on
beside requests leaves off.

It leans on how gunicorn 27 is made: `enqueue_req` is where a connection is given to a thread, and `finish_request`
where it comes back, both in the main loop, as all methods here are unless they say otherwise.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import functools
import http
import re
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from gunicorn.workers.gthread import TConn, ThreadWorker

from cinderlite import errors, metrics
from cinderlite.api import faults, versions

#: Bytes of a request's head at most.
HEAD_MOST = 65536
#: Seconds that a client has to close its end after the last answer.
_FAREWELL = 2.0
#: Clients at most of which that is awaited.
_FAREWELLS = 256
_PIECE = 65536
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
_EXPECT = re.compile(rb"\r\nexpect[ \t]*:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
#: How a request stands: there is more to come, all is there, the client has gone, or it is not taken.
Heard = Literal["partly", "whole", "gone", "malformed", "head too large", "body too large"]


def _canned(status: int, message: str) -> bytes:
    answer = faults.fault(status, message)
    answer.headers["Connection"] = "close"
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n{answer.headers}".encode() + answer.get_data()


_OVERLOADED = _canned(503, errors.Overloaded().message)
_ANSWERS = {
    "malformed": _canned(400, "Malformed request body"),
    "head too large": _canned(431, "The header is too large."),
    "body too large": _canned(413, faults.TOO_LARGE),
}
_SLOW = _canned(408, "The request did not come in whole in time.")
_DISMISSED: concurrent.futures.Future[bool] = concurrent.futures.Future()
_DISMISSED.set_result(False)


class Client(socket.socket):
    """A client's connection, with what was heard of its request.

    `seconds` is how long it may take an answer, `farewell` takes the connection over when it is half closed.
    """

    def __init__(self, taken: socket.socket, seconds: float, farewell: Callable[[Client], None]) -> None:
        super().__init__(fileno=taken.detach())
        self._seconds = seconds
        self._farewell = farewell
        self._leaving: Literal["", "half", "all"] = ""
        self._heard = bytearray()
        #: Where the body begins, 0 as long as the head has not ended.
        self._body = 0
        #: Where the next chunk begins, if the body comes in chunks.
        self._chunk = 0
        #: Where the request ends, 0 as long as that is not known.
        self._end = 0

    def begin(self, ahead: bytes) -> None:
        """Expect another request, whose first bytes may have come with the one before."""
        self._heard[:0] = ahead
        self._body = self._chunk = self._end = 0

    @property
    def said(self) -> bool:
        """Whether anything was heard."""
        return bool(self._heard)

    @property
    def path(self) -> str:
        """What the request line asks for, without its query."""
        _, _, rest = bytes(self._heard[: self._heard.find(b"\r\n")]).partition(b" ")
        return rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")

    def listen_on(self, body_most: int) -> Heard:
        """Take what has come in."""
        state = self._judge(body_most)
        if state != "partly":
            return state
        try:
            data = super().recv(_PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return "partly"
        except OSError:
            return "gone"
        self._heard += data
        return self._judge(body_most) if data else "gone"

    def _judge(self, body_most: int) -> Heard:
        if not self._body and not self._head():
            return "head too large" if len(self._heard) > HEAD_MOST else "partly"
        if self._body > HEAD_MOST:
            return "head too large"
        if self._chunk:
            return self._judge_chunks(body_most)
        if self._end - self._body > body_most:
            return "body too large"
        return "whole" if len(self._heard) >= self._end else "partly"

    def _judge_chunks(self, body_most: int) -> Heard:
        if not self._end and not self._walk():
            return "malformed"
        # Twice, for each chunk has a line of its own; what is in them is measured by the application.
        if (self._end or len(self._heard)) - self._body > 2 * body_most:
            return "body too large"
        return "whole" if self._end else "partly"

    def _head(self) -> bool:
        """Look for the end of the head, and in it for where the body ends."""
        found = self._heard.find(b"\r\n\r\n")
        if found < 0:
            return False
        head = bytes(self._heard[: found + 2])
        polite = _EXPECT.sub(b"", head)
        if polite != head:
            with contextlib.suppress(OSError):
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n", socket.MSG_DONTWAIT)
            self._heard[: len(head)] = head = polite
        self._body = len(head) + 2
        if _CHUNKED.search(head):
            self._chunk = self._body
        else:
            length = _LENGTH.search(head)
            self._end = self._body + (int(length[1]) if length else 0)
        return True

    def _walk(self) -> bool:
        """Go from chunk to chunk as far as they have come in; returns whether all were chunks."""
        while (line := self._heard.find(b"\r\n", self._chunk)) >= 0:
            size = _SIZE.fullmatch(self._heard, self._chunk, line)
            if size is None:
                return False
            after = line + 2 + int(size[1], 16)
            if after == line + 2:
                end = self._heard.find(b"\r\n\r\n", line)
                if end >= 0:
                    # Nobody here wants trailers, and gunicorn would find fault with them when an answer is begun.
                    del self._heard[line + 2 : end + 2]
                    self._end = line + 4
                return True
            if after + 2 > len(self._heard):
                return True
            if self._heard[after : after + 2] != b"\r\n":
                return False
            self._chunk = after + 2
        return True

    def reply(self, answer: bytes) -> None:
        """Send a short answer as far as that goes without waiting."""
        with contextlib.suppress(OSError):
            self.send(answer, socket.MSG_DONTWAIT)

    def recv(self, _size: int, _flags: int = 0) -> bytes:
        """All that was heard; nothing means that the client is not read from any more. For gunicorn's threads."""
        data = bytes(self._heard)
        self._heard.clear()
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send within the time that a client has to take an answer. Raises ConnectionResetError. For any thread."""
        self.settimeout(self._seconds)
        try:
            super().sendall(data, flags)
        except TimeoutError:
            metrics.CUT_OFF.labels("slow").inc()
            raise ConnectionResetError(errno.ECONNRESET, "the client does not take its answer") from None

    def shutdown(self, how: int) -> None:
        """Say that nothing more will be sent."""
        super().shutdown(how)
        self._leaving = self._leaving or "half"

    def close(self) -> None:
        """Close; one that is half closed goes to `farewell`, for closing it with unread bytes would undo the answer."""
        if self._leaving == "half":
            self._leaving = "all"
            self._farewell(self)
        elif self._leaving != "all":
            super().close()

    def drain(self) -> bool:
        """Throw away what still comes after the last answer; returns whether there may be more."""
        try:
            return bool(super().recv(_PIECE, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def leave(self) -> None:
        """Close for good."""
        super().close()


class Worker(ThreadWorker):  # type: ignore[misc]
    """See the module. Make one by `limited`."""

    #: Seconds for a whole request, and for a whole answer.
    seconds: float
    #: Bytes of a body.
    body_most: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Idle connections may not keep new ones out: of all that there may be, half for those that are kept, a
        # quarter for those whose request is still coming in, the oldest of which has to go when there are more.
        self.max_keepalived = self.worker_connections // 2
        self._crowd = max(1, self.worker_connections // 4)
        #: Connections whose request is coming in, and since when they have had enough time; the oldest first.
        self._hearing: dict[TConn, float] = {}
        self._farewells: dict[Client, float] = {}
        self._in_threads = 0
        self._leaving: threading.Thread | None = None

    def run(self) -> None:
        """Serve until told to end, and until nothing is under way any more."""
        super().run()
        leaving = self._leave_off()
        while leaving.is_alive():  # It knows itself when it has waited for long enough.
            self.notify()
            leaving.join(1)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take connections or not; the first thing that is done when the worker is to end."""
        if not self.alive:
            for listener in self.sockets:
                # The listen queue holds no more than that, and others take from it too.
                for _ in range(self.cfg.backlog):
                    if not select.select([listener], [], [], 0)[0]:
                        break
                    self.accept(listener)
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                listener.close()
            self._leave_off()

    def _leave_off(self) -> threading.Thread:
        """Have what goes on beside requests end."""
        if self._leaving is None:
            self._leaving = threading.Thread(target=self.app.background.stop, name="leaving", daemon=True)
            self._leaving.start()
        return self._leaving

    def enqueue_req(self, conn: TConn) -> None:
        """A connection is new, or readable, or a further request came with the one before."""
        if isinstance(conn.sock, Client):
            conn.sock.begin(conn.parser.unreader.take_buffered() if conn.parser else b"")
        else:
            farewell = functools.partial(self.method_queue.defer, self._say_farewell)
            conn.sock = Client(conn.sock, self.seconds, farewell)
        conn.data_ready = True
        conn.sock.setblocking(False)
        heard = conn.sock.listen_on(self.body_most)
        if heard != "partly":
            self._decide(conn, heard)
            return
        if len(self._hearing) >= self._crowd:
            metrics.CUT_OFF.labels("crowded").inc()
            self._stop_hearing(next(iter(self._hearing)))
        self._hearing[conn] = time.monotonic() + self.seconds
        self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._hear, conn))

    def _hear(self, conn: TConn, _sock: Client) -> None:
        # Another event of the same turn may have ended it.
        if conn not in self._hearing:
            return
        heard = conn.sock.listen_on(self.body_most)
        if heard != "partly":
            del self._hearing[conn]
            self.poller.unregister(conn.sock)
            self._decide(conn, heard)

    def _decide(self, conn: TConn, heard: Heard) -> None:
        if heard == "whole":
            if self._in_threads < self.cfg.threads or conn.sock.path in versions.OPEN:
                self._in_threads += 1
                super().enqueue_req(conn)
                return
            metrics.SHED.labels("any", "full").inc()
            conn.sock.reply(_OVERLOADED)
        elif heard in _ANSWERS:
            conn.sock.reply(_ANSWERS[heard])
        self._dismiss(conn)

    def _stop_hearing(self, conn: TConn, answer: bytes = b"") -> None:
        del self._hearing[conn]
        self.poller.unregister(conn.sock)
        if answer:
            conn.sock.reply(answer)
        self._dismiss(conn)

    def _dismiss(self, conn: TConn) -> None:
        """Have gunicorn close the connection, as after a request that a thread was done with."""
        self.method_queue.defer(self.finish_request, conn, _DISMISSED)

    def finish_request(self, conn: TConn, fs: concurrent.futures.Future[Any]) -> None:
        """A thread is done with a connection."""
        if fs is not _DISMISSED:
            self._in_threads -= 1
        super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close what has had its time; gunicorn calls this every second."""
        super().murder_pending()
        now = time.monotonic()
        for conn, until in list(self._hearing.items()):
            if conn.sock.said:
                if now >= until:
                    metrics.CUT_OFF.labels("slow").inc()
                    self._stop_hearing(conn, _SLOW)
            elif now >= until or not self.alive:
                self._stop_hearing(conn)
        for sock in [sock for sock, until in self._farewells.items() if now >= until]:
            self._part(sock)

    def _say_farewell(self, sock: Client) -> None:
        if len(self._farewells) >= _FAREWELLS:
            self._part(next(iter(self._farewells)))
        self._farewells[sock] = time.monotonic() + _FAREWELL
        self.poller.register(sock, selectors.EVENT_READ, self._drain)

    def _drain(self, sock: Client) -> None:
        if sock in self._farewells and not sock.drain():
            self._part(sock)

    def _part(self, sock: Client) -> None:
        del self._farewells[sock]
        self.poller.unregister(sock)
        sock.leave()


def limited(*, seconds: float, body_most: int) -> type[Worker]:
    """A worker with these limits; gunicorn makes it of a class alone."""
    return type("LimitedWorker", (Worker,), {"seconds": seconds, "body_most": body_most})
