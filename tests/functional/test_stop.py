# SPDX-License-Identifier: Apache-2.0
"""A service that is told to stop answers whom it has begun with, and leaves the rest so that others can go on at once."""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import pathlib
import signal
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backends.service import Answer, Service
from fakes_glance import PIECE, FakeGlance
from lab.process import wait

Post = Callable[[dict[str, Any]], "concurrent.futures.Future[Answer]"]


class Stoppable(Service):
    """The service over fakes, of which one can see how it ends."""

    def begin(self, place: str = "") -> None:
        """Start it; on another machine than this one, as far as it can tell, with a `place`."""
        self.start("backends.on_fakes", HOLD=f"{self.directory}/hold", HELD=f"{self.directory}/held", PLACE=place)

    def hold(self) -> None:
        """Have the making of images wait from now on, until `go_on`."""
        (self.directory / "hold").touch()

    def go_on(self) -> None:
        """Let images be made."""
        (self.directory / "hold").unlink()

    def held(self) -> bool:
        """Whether somebody waits for `go_on`."""
        return (self.directory / "held").exists()

    def terminate(self) -> None:
        """Tell it to stop."""
        os.kill(self.pid, signal.SIGTERM)

    def ended(self) -> int:
        """Wait for it to end, and how it did."""
        assert self._process is not None
        status = self._process.wait(30)
        self._process = None
        return status


@pytest.fixture
def glance() -> Iterator[FakeGlance]:
    """An image service that outlives the process."""
    made = FakeGlance()
    yield made
    made.stop()


@pytest.fixture
def service(tmp_path: pathlib.Path, glance: FakeGlance) -> Iterator[Stoppable]:
    """Not started yet."""
    made = Stoppable(
        tmp_path, tmp_path / "no.conf", tmp_path / "guests", {"DEFAULT": {"glance_api_servers": glance.url}}
    )
    yield made
    made.kill()


@pytest.fixture
def post(service: Stoppable) -> Iterator[Post]:
    """Asks for a volume, in a thread."""
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        yield lambda body: threads.submit(service.call, "POST", "/v3/volumes", {"volume": {"size": 1, **body}})


def test_who_asked_before_is_answered_and_nobody_comes_after(service: Stoppable, post: Post) -> None:
    service.begin()
    service.hold()
    answer = post({"name": "slow"})
    wait(service.held, timeout=20, what="the request to be at work")
    service.terminate()
    wait(lambda: _refused(service), timeout=20, what="the port to be closed while the request is at work")
    assert not answer.done()
    service.go_on()
    assert answer.result(20).status == 202
    assert service.ended() == 0
    assert f"{answer.result().body['volume']['id']}: create done" in service.tail()


def _refused(service: Stoppable) -> bool:
    try:
        service.call("GET", "/healthcheck", user=None, timeout=0.5)
    except urllib.error.URLError as error:
        return isinstance(error.reason, ConnectionRefusedError)
    except OSError:
        return False
    return False


def test_another_process_goes_on_with_a_job_at_once(service: Stoppable, glance: FakeGlance) -> None:
    """On another machine, which cannot see that the process is dead: so it is the lease that tells."""
    service.begin("elsewhere")
    glance.trickle = True
    image = glance.create(os.urandom(PIECE) * 200)
    volume = service.create(imageRef=image)
    wait(lambda: service.volume(volume)["status"] == "downloading", timeout=20, what="the job to be at work")
    service.terminate()
    assert service.ended() == 0
    assert f"{volume}: download postponed" in service.tail()
    glance.trickle = False
    service.begin()
    service.rest(volume, "available", 30)


def test_what_does_not_end_is_cut_off_and_finished_later(service: Stoppable, post: Post) -> None:
    service.configure({"DEFAULT": {"graceful_shutdown_timeout": 1}})
    service.begin()
    service.hold()
    answer = post({"name": "stuck"})
    wait(service.held, timeout=20, what="the request to be at work")
    service.terminate()
    service.terminate()
    service.ended()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        answer.result(20)
    service.go_on()
    service.begin()
    [volume] = service.call("GET", "/v3/volumes").body["volumes"]
    service.rest(volume["id"], "available", 30)
