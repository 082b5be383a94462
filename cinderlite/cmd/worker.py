# SPDX-License-Identifier: Apache-2.0
"""gunicorn's threaded worker, which gives a connection to a thread only when all of its request has come in.

gunicorn's own lets a thread read from the client without a time-out, so a few clients that send a byte now and then
hold all threads; and its main loop waits up to 2 s for each client to close its end. Here the main loop reads, without
waiting, and lets go of clients that do not close; a thread reads only what was heard and never waits for a client's
bytes. What is late, too large or too much is answered here, in the API's form, without a thread.

When it is told to end, who has connected is answered, and who comes later is refused at once and can ask another host;
gunicorn itself keeps the port open as long as a request is under way and takes nobody from it. Meanwhile what goes on
beside requests leaves off.

A thread that has answered looks out for the client's next request for a moment before it gives the connection back:
clients that work through a list, or wait for a status, spare themselves two turns of the main loop.

It leans on how gunicorn 27 is made: `enqueue_req` is where a connection is given to a thread, and `finish_request`
where it comes back, both in the main loop, as all methods here are unless they say otherwise.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import faulthandler
import functools
import gc
import http
import mmap
import re
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Literal

from gunicorn.workers.gthread import TConn, ThreadWorker

from cinderlite import affinity, errors, metrics
from cinderlite.api import faults, versions

#: Bytes of a request's head at most.
HEAD_MOST = 65536
#: Seconds that a client has to close its end after the last answer.
_FAREWELL = 2.0
#: Seconds for which the thread that gave an answer looks out for the client's next request: to have the main loop look
#: out for it, and hand it to a thread, takes a tenth more of a processor for a short request.
_LINGER = 0.005
#: Clients at most of which that is awaited.
_FAREWELLS = 256
#: Seconds after which a process that could not begin gives way to another one.
_BEGINS_AGAIN = 2.0
_PIECE = 65536
#: Connections that are taken at a time at most; the processes of a service share those that come.
_ACCEPTS = 16
#: Seconds for which a process leaves a new connection to one that has fewer, after which it does not do so again if
#: that took none, and between two looks whether it did.
_GIVES_WAY, _RESTS, _MOMENT = 0.02, 1.0, 0.0005
#: In a tally: a process that takes no connections.
_NONE = 2**32 - 1
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
_CLOSES = re.compile(rb"^[^\r\n]* HTTP/1\.0\r\n|\r\nconnection[ \t]*:[^\r\n]*close", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect[ \t]*:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
#: How a request stands: there is more to come, all is there, the client has gone, or it is not taken.
Heard = Literal["partly", "whole", "gone", "malformed", "head too large", "body too large"]


def _canned(status: int, message: str, connection: str = "close") -> bytes:
    answer = faults.fault(status, message)
    answer.headers["Connection"] = connection
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n{answer.headers}".encode() + answer.get_data()


_OVERLOADED, _COME_AGAIN = (_canned(503, errors.Overloaded().message, how) for how in ("close", "keep-alive"))
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

    def await_more(self, seconds: float) -> None:
        """Wait so long for the client to say something, if it has said nothing. For any thread."""
        if not self._heard:
            waiting = select.poll()
            waiting.register(self, select.POLLIN)
            waiting.poll(seconds * 1000)

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

    def reply(self, answer: bytes) -> bool:
        """Send a short answer as far as that goes without waiting; whether all of it went."""
        with contextlib.suppress(OSError):
            return self.send(answer, socket.MSG_DONTWAIT) == len(answer)
        return False

    def forget(self) -> bool:
        """Take nothing of the request that was heard; whether another one may follow on this connection."""
        # An answer to HEAD has no body, and the one that is kept for all has.
        head = self._heard.startswith(b"HEAD ")
        stays = not head and len(self._heard) == self._end and _CLOSES.search(self._heard, 0, self._body) is None
        self._heard.clear()
        return stays

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


class Tally:
    """How many connections each process of a service has, in memory that those share which are forked after this."""

    def __init__(self, places: int = 256) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * places)).cast("I")
        for place in range(places):
            self.tell(place, None)

    def tell(self, place: int, count: int | None) -> None:
        """Have the others know how many the process of that number has, or by None that it takes no more."""
        self._counts[place] = _NONE if count is None else count

    def fewest_elsewhere(self, place: int) -> int | None:
        """What the others that take connections have at least; None if there are none."""
        found = min((*self._counts[:place], *self._counts[place + 1 :]), default=_NONE)
        return None if found == _NONE else found

    def free(self, taken: Collection[int]) -> int | None:
        """A number that no process has; None if all are taken."""
        return next((place for place in range(len(self._counts)) if place not in taken), None)


class Worker(ThreadWorker):  # type: ignore[misc]
    """See the module. Make one by `limited`."""

    #: Seconds for a whole request, and for a whole answer.
    seconds: float
    #: Bytes of a body.
    body_most: int
    #: Where its threads stay; None for anywhere.
    processor: int | None = None
    #: What the processes tell each other of their connections, and under which number this one does.
    tally: Tally | None = None
    place: int = 0
    booted: bool

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
        #: Since when another process is given the time to take what comes, and how many connections it had then.
        self._gave_way, self._fewest = 0.0, 0

    def init_process(self) -> None:
        """Be a process of its own: make the application, and serve."""
        if self.processor is not None:
            affinity.stay_on(self.processor)
        try:
            super().init_process()
        except Exception as error:
            # gunicorn ends all processes when one cannot begin. That is right when the service is started; later on the
            # others serve, and what is in this one's way (the database is restarted) goes.
            if not self.booted and (self.age > self.cfg.workers or isinstance(error, errors.Unavailable)):
                self.booted = True
                time.sleep(_BEGINS_AGAIN)
            raise

    def init_signals(self) -> None:
        """Besides gunicorn's own: what each thread was doing is told when a library ends the process, as librbd can."""
        super().init_signals()
        faulthandler.enable()

    def run(self) -> None:
        """Serve until told to end, and until nothing is under way any more."""
        # What is loaded by now stays. To have it looked through for garbage again and again, while a thousand volumes
        # are listed, took a third of that time.
        gc.collect()
        gc.freeze()
        super().run()
        leaving = self._leave_off()
        while leaving.is_alive():  # It knows itself when it has waited for long enough.
            self.notify()
            leaving.join(1)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take connections or not; the first thing that is done when the worker is to end."""
        if self._leaving is not None:
            return  # It was told to end before it had begun, and all is closed.
        alive = self.alive
        if not alive:
            for listener in self.sockets:
                # The listen queue holds no more than that, and others take from it too.
                for _ in range(self.cfg.backlog):
                    if not select.select([listener], [], [], 0)[0]:
                        break
                    self.accept(listener)
        super().set_accept_enabled(enabled and alive)
        if self.tally is not None:
            self.tally.tell(self.place, self.nr_conns if enabled and alive else None)
        if not alive:
            for listener in self.sockets:
                listener.close()
            self._leave_off()

    def accept(self, listener: socket.socket) -> None:
        """Take who has connected; gunicorn takes one a turn, and of many who come at a time the last waits for long.

        All processes are told of each. A connection may stay for long, so who has the fewest takes the next: all of
        them in one process would leave the others' processors with nothing to do.
        """
        for _ in range(_ACCEPTS):
            if self._gives_way():
                time.sleep(_MOMENT)
                return
            before = self.nr_conns
            super().accept(listener)
            if self.nr_conns in (before, self.worker_connections) or not select.select([listener], [], [], 0)[0]:
                return

    def _gives_way(self) -> bool:
        """Whether another process, which has fewer connections, is to take the next one, and has not been too slow."""
        fewest = self.tally.fewest_elsewhere(self.place) if self.tally is not None and self.alive else None
        if fewest is None or self.nr_conns <= fewest:
            return False
        now = time.monotonic()
        if fewest != self._fewest or now - self._gave_way > _RESTS:
            self._fewest, self._gave_way = fewest, now
        return now - self._gave_way < _GIVES_WAY

    @property
    def nr_conns(self) -> int:
        """Connections of this process; gunicorn counts them."""
        return self._connections

    @nr_conns.setter
    def nr_conns(self, count: int) -> None:
        self._connections = count
        if self.tally is not None and self._accepting:
            self.tally.tell(self.place, count)

    def _leave_off(self) -> threading.Thread:
        """Have what goes on beside requests end."""
        if self._leaving is None:
            self._leaving = threading.Thread(target=self.app.background.stop, name="leaving", daemon=True)
            self._leaving.start()
        return self._leaving

    def on_client_socket_readable(self, conn: TConn, client: Client) -> None:
        """A client that was answered says something again.

        Under load each call of the kernel's costs the main loop a wait for the interpreter, so who is refused then
        stays where he is.
        """
        if self.app.admission.is_full:
            client.begin(conn.parser.unreader.take_buffered() if conn.parser else b"")
            if client.listen_on(self.body_most) == "whole" and self.app.admission.turns_away(client.path):
                self.keepalived_conns.remove(conn)
                if self._may_ask_again(conn):
                    conn.set_timeout()
                    self.keepalived_conns.append(conn)
                else:
                    self.poller.unregister(client)
                    self._dismiss(conn)
                return
        super().on_client_socket_readable(conn, client)

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
            if self.app.admission.turns_away(conn.sock.path):
                if self._may_ask_again(conn):
                    conn.set_timeout()
                    self.keepalived_conns.append(conn)
                    readable = functools.partial(self.on_client_socket_readable, conn)
                    self.poller.register(conn.sock, selectors.EVENT_READ, readable)
                else:
                    self._dismiss(conn)
                return
            if self._in_threads < self.cfg.threads or conn.sock.path in versions.OPEN:
                self._in_threads += 1
                super().enqueue_req(conn)
                return
            metrics.SHED.labels("any", "full").inc()
            conn.sock.reply(_OVERLOADED)
        elif heard in _ANSWERS:
            conn.sock.reply(_ANSWERS[heard])
        self._dismiss(conn)

    def _may_ask_again(self, conn: TConn) -> bool:
        """Refuse a request; whether its client stays, for to connect anew would cost both more."""
        # Those that are kept may not keep new ones out, as after an answer.
        if conn.sock.forget() and self.alive and len(self.keepalived_conns) < self.max_keepalived:
            return bool(conn.sock.reply(_COME_AGAIN))
        conn.sock.reply(_OVERLOADED)
        return False

    def _stop_hearing(self, conn: TConn, answer: bytes = b"") -> None:
        del self._hearing[conn]
        self.poller.unregister(conn.sock)
        if answer:
            conn.sock.reply(answer)
        self._dismiss(conn)

    def _dismiss(self, conn: TConn) -> None:
        """Have gunicorn close the connection, as after a request that a thread was done with."""
        self.method_queue.defer(self.finish_request, conn, _DISMISSED)

    def handle(self, conn: TConn) -> bool:
        """Answer a request, and those that follow closely; whether there may be more. In a thread of its own."""
        stays: bool = super().handle(conn)
        while stays and self._follows(conn):
            stays = super().handle(conn)
        return stays

    def _follows(self, conn: TConn) -> bool:
        """Whether the client's next request has come in, or comes in very soon, and may be answered by this thread."""
        if not self.alive or self._in_threads > self.cfg.threads // 2:
            return False
        conn.sock.begin(conn.parser.unreader.take_buffered())
        conn.sock.await_more(_LINGER)
        # It has the time-out of its answer, for which Python would wait whatever the flags of a call say.
        conn.sock.setblocking(False)
        return conn.sock.listen_on(self.body_most) == "whole" and not self.app.admission.is_full

    def finish_request(self, conn: TConn, fs: concurrent.futures.Future[Any]) -> None:
        """A thread is done with a connection."""
        if fs is not _DISMISSED:
            self._in_threads -= 1
            if conn.sock.said and fs.exception() is None:  # Of what has been read already the poller does not tell.
                self.enqueue_req(conn)
                return
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
