# SPDX-License-Identifier: Apache-2.0
"""A service of several processes: /metrics is of all of them, whichever answers, and its log is one."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import OverFakes
from lab.process import wait


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverFakes]:
    """With two processes, and a log for machines."""
    directory = tmp_path_factory.mktemp("service")
    options = {"osapi_volume_workers": 2, "use_json": True}
    made = OverFakes(directory, directory / "no.conf", directory / "guests", {"DEFAULT": options})
    made.begin()
    yield made
    made.kill()


def test_figures_are_of_all_processes(service: OverFakes) -> None:
    name = 'cinderlite_request_seconds_count{code="200",operation="volumes.index",service="volume"}'
    sent = 0

    def both_answered() -> bool:
        nonlocal sent
        threads = [threading.Thread(target=service.call, args=("GET", "/v3/volumes")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        sent += len(threads)
        return len({one["process"] for one in lines(service) if "GET /v3/volumes 200" in str(one["message"])}) == 2

    wait(both_answered, timeout=60, what="both processes to answer")
    for _ in range(10):
        assert figures(service)[name] == sent

    def all_passed() -> bool:
        return figures(service).get('cinderlite_job_threads{pool="jobs"}') == 2

    wait(all_passed, timeout=60, what="both processes to tell of their threads")
    began = service.conf.stat().st_mtime
    wait(
        lambda: figures(service)["cinderlite_pass_timestamp_seconds"] > began,
        timeout=20,
        what="both reconcilers, and no process that has none, to have come to the end of a pass",
    )


def test_each_line_is_json_and_says_whose_request_it_is_of(service: OverFakes) -> None:
    answer = service.call("POST", "/v3/volumes", {"volume": {"size": 1}})
    wanted = answer.headers["x-openstack-request-id"]
    [line] = [one for one in lines(service) if "POST /v3/volumes 202" in str(one["message"])]
    assert (line["levelname"], line["name"], line["context"]["request_id"]) == ("INFO", "cinderlite.app", wanted)
    assert (line["context"]["user"], line["context"]["project"]) == ("alice", "demo")
    volume = answer.body["volume"]["id"]
    assert [one for one in lines(service) if f"volume {volume}: create done" in str(one["message"])]


def test_each_process_stays_on_a_processor_of_its_own(service: OverFakes) -> None:
    given = os.sched_getaffinity(0)
    if len(given) < 2:
        pytest.skip("there is one processor")
    service.call("GET", "/v3/volumes")
    where = {worker: os.sched_getaffinity(worker) for worker in service.workers()}
    assert [len(one) for one in where.values()] == [1, 1]
    assert frozenset.union(*map(frozenset, where.values())) <= given
    assert len({*map(frozenset, where.values())}) == 2
    for worker, its in where.items():
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads_of(worker)} == {frozenset(its)}


def test_lines_of_the_server_itself_are_json_too(service: OverFakes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")

    def told() -> bool:
        return any((one["name"], one["levelname"]) == ("gunicorn.error", "WARNING") for one in lines(service))

    wait(told, timeout=60, what="the line")
    worker = next(int(one["process"]) for one in lines(service) if one["name"] == "cinderlite.app")
    os.kill(worker, signal.SIGKILL)
    killed = f"Worker (pid:{worker}) was sent SIGKILL"
    wait(lambda: any(killed in str(one["message"]) for one in lines(service)), timeout=60, what="the master's line")


def test_connections_that_come_at_once_are_shared(service: OverFakes) -> None:
    """They may stay: all of them in one process would leave the other's processor with nothing to do."""
    wait(lambda: min(shares(service, 12)) > 0, timeout=60, what="both processes to answer")

    def shared() -> bool:
        return sum(min(shares(service, 12)) for _ in range(5)) >= 10

    wait(shared, timeout=20, what="five bursts of which both have a good part")  # The machine may stop a process.


def shares(service: OverFakes, count: int) -> list[int]:
    """How many of some connections that come at once each of the two processes takes."""
    before = len(lines(service))
    with contextlib.ExitStack() as stack:
        clients = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=30) for _ in range(count)]
        for one in clients:
            stack.enter_context(contextlib.closing(one)).connect()
        for one in clients:
            one.request("GET", "/")
        for one in clients:
            assert one.getresponse().read()
    said = [one for one in lines(service)[before:] if "GET / 300" in str(one["message"])]
    assert len(said) == count
    took = collections.Counter(one["process"] for one in said)
    return [took[process] for process in service.workers()]


def test_one_that_cannot_begin_takes_nobody_with_it(tmp_path: pathlib.Path) -> None:
    """As when it is to take a killed one's place while the database is restarted."""
    own = OverFakes(tmp_path, tmp_path / "no.conf", tmp_path / "guests", {"DEFAULT": {"osapi_volume_workers": 2}})
    own.begin()
    database, aside = tmp_path / "cinderlite.sqlite", tmp_path / "aside"
    try:
        assert own.call("GET", "/v3/volumes").status == 200
        [former, other] = own.workers()
        database.rename(aside)
        database.mkdir()
        os.kill(former, signal.SIGKILL)
        failed = "Exception in worker process"
        wait(lambda: own.log.read_text(encoding="utf-8").count(failed) > 1, timeout=60, what="two that cannot begin")
        assert own.call("GET", "/", user=None).status == 300
        assert other in own.workers()
        database.rmdir()
        aside.rename(database)
        os.kill(other, signal.SIGKILL)

        def others_answer() -> bool:
            try:
                return own.call("GET", "/v3/volumes").status == 200
            except OSError:
                return False

        wait(others_answer, timeout=60, what="new ones that answer")
    finally:
        own.kill()


def test_one_that_a_library_ends_says_what_it_was_doing(tmp_path: pathlib.Path) -> None:
    own = OverFakes(tmp_path, tmp_path / "no.conf", tmp_path / "guests", {})
    own.begin()
    try:
        assert own.call("GET", "/v3/volumes").status == 200
        [process] = own.workers()
        os.kill(process, signal.SIGABRT)
        wait(lambda: process not in own.workers(), timeout=20, what="its end")
        said = own.log.read_text(encoding="utf-8")
        assert "Fatal Python error: Aborted" in said
        assert "/cinderlite/cmd/worker.py" in said
    finally:
        own.kill()


def test_one_that_is_told_to_stop_before_it_has_begun_stops(tmp_path: pathlib.Path) -> None:
    own = OverFakes(tmp_path, tmp_path / "no.conf", tmp_path / "guests", {"DEFAULT": {"osapi_volume_workers": 2}})
    own.begin()
    hold = tmp_path / "HOLD_START"
    try:
        hold.touch()
        [former, other] = own.workers()
        os.kill(former, signal.SIGKILL)
        wait(lambda: hold.read_text(encoding="ascii") != "", timeout=20, what="another process")
        own.terminate()
        wait(lambda: other not in own.workers(), timeout=20, what="the one that serves to end")
        hold.unlink()
        assert own.ended() == 0
        assert "Exception in worker process" not in (tmp_path / "log").read_text(encoding="utf-8")
    finally:
        own.kill()


def figures(service: OverFakes) -> dict[str, float]:
    text = service.call("GET", "/metrics", user=None).text
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def lines(service: OverFakes) -> list[dict[str, Any]]:
    """All of its log; the last line may be half written."""
    whole, _, _ = service.log.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def threads_of(process: int) -> list[int]:
    return [int(path.name) for path in pathlib.Path(f"/proc/{process}/task").iterdir()]
