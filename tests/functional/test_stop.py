# SPDX-License-Identifier: Apache-2.0
"""A service that is told to stop answers whom it has begun with, and leaves the rest so that others can go on at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import pathlib
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backends.service import Answer, OverFakes
from fakes_glance import PIECE, FakeGlance
from lab.process import wait

Post = Callable[[dict[str, Any]], "concurrent.futures.Future[Answer]"]


@pytest.fixture
def glance() -> Iterator[FakeGlance]:
    """An image service that outlives the process."""
    made = FakeGlance()
    yield made
    made.stop()


@pytest.fixture
def service(tmp_path: pathlib.Path, glance: FakeGlance) -> Iterator[OverFakes]:
    """Not started yet."""
    made = OverFakes(
        tmp_path, tmp_path / "no.conf", tmp_path / "guests", {"DEFAULT": {"glance_api_servers": glance.url}}
    )
    yield made
    made.kill()


@pytest.fixture
def post(service: OverFakes) -> Iterator[Post]:
    """Asks for a volume, in a thread."""
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        yield lambda body: threads.submit(service.call, "POST", "/v3/volumes", {"volume": {"size": 1, **body}})


def test_who_asked_before_is_answered_and_nobody_comes_after(service: OverFakes, post: Post) -> None:
    service.begin()
    service.hold()
    answer = post({"name": "slow"})
    wait(service.held, timeout=60, what="the request to be at work")
    service.terminate()
    wait(lambda: _refused(service), timeout=60, what="the port to be closed while the request is at work")
    assert not answer.done()
    service.go_on()
    assert answer.result(60).status == 202
    assert service.ended() == 0
    assert f"{answer.result().body['volume']['id']}: create done" in service.tail()


def _refused(service: OverFakes) -> bool:
    try:
        service.call("GET", "/healthcheck", user=None, timeout=0.5)
    except urllib.error.URLError as error:
        return isinstance(error.reason, ConnectionRefusedError)
    except OSError:
        return False
    return False


def test_who_keeps_a_connection_open_keeps_nobody_waiting(service: OverFakes) -> None:
    service.configure({"DEFAULT": {"client_socket_timeout": 300}})
    service.begin()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as kept:
        kept.request("GET", "/v3/")
        assert kept.getresponse().read()
        service.terminate()
        assert service.ended() == 0


def test_another_process_goes_on_with_a_job_at_once(service: OverFakes, glance: FakeGlance) -> None:
    """On another machine, which cannot see that the process is dead: so it is the lease that tells."""
    service.begin("elsewhere")
    glance.trickle = True
    image = glance.create(os.urandom(PIECE) * 200)
    volume = service.create(imageRef=image)
    wait(lambda: service.volume(volume)["status"] == "downloading", timeout=60, what="the job to be at work")
    service.terminate()
    assert service.ended() == 0
    assert f"{volume}: download postponed" in service.tail()
    glance.trickle = False
    service.begin()
    service.rest(volume, "available", 60)


def test_what_does_not_end_is_cut_off_and_finished_later(service: OverFakes, post: Post) -> None:
    service.configure({"DEFAULT": {"graceful_shutdown_timeout": 1}})
    service.begin()
    service.hold()
    answer = post({"name": "stuck"})
    wait(service.held, timeout=60, what="the request to be at work")
    service.terminate()
    service.terminate()
    service.ended()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        answer.result(60)
    service.go_on()
    service.begin()
    [volume] = service.call("GET", "/v3/volumes").body["volumes"]
    service.rest(volume["id"], "available", 60)
