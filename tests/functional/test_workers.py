# SPDX-License-Identifier: Apache-2.0
"""A service of several processes: /metrics is of all of them, whichever answers, and its log is one."""

from __future__ import annotations

import json
import os
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


def figures(service: OverFakes) -> dict[str, float]:
    text = service.call("GET", "/metrics", user=None).text
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def lines(service: OverFakes) -> list[dict[str, Any]]:
    """All of its log; the last line may be half written."""
    whole, _, _ = service.log.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
