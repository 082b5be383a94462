# SPDX-License-Identifier: Apache-2.0
"""What the service does with more requests than it can take: a ramp, then several times as many; see `tools/overload`.

Requests come when they are due, whether or not those before were answered, and each one's time counts from then; so a
service that falls behind cannot hide it. One in ten makes a volume. Afterwards each of these must be there whole if it
was accepted, and not at all if it was refused. A refusal must say when to come again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import dataclasses
import datetime
import json
import pathlib
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from backends.service import PASSWORD, Service
from lab.ceph import Ceph
from measuring import commit, machine, versions

MIB = 2**20
#: Requests a second that the ramp begins with, how much more each step has, and seconds of a step.
FIRST, STEEPER, STEP = 20.0, 1.4, 4.0
#: A rate is sustained if nothing is refused and 99 of 100 are answered within so many seconds.
PROMPT = 1.0
#: Seconds within which 99 of 100 accepted requests are answered under too many: a wait, `api_max_wait`, and the work.
BOUND = 8.0
#: Seconds that a client waits for an answer.
PATIENCE = 30.0
#: Volumes that there are to be looked at.
VOLUMES = 20
#: Every so many requests make a volume.
EVERY = 10
#: Of what the service has, how much more memory it may take after the first tenth of the many requests.
GROWTH = 0.05


@dataclasses.dataclass
class Stage:
    """What became of the requests of one rate; times are in seconds."""

    name: str
    rate: float
    seconds: float
    accepted: list[float] = dataclasses.field(default_factory=list)
    refused: list[float] = dataclasses.field(default_factory=list)
    #: other answers, by status; 0 for none at all
    others: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    @property
    def prompt(self) -> bool:
        """Whether the service keeps up with it."""
        return not self.refused and not self.others and share(self.accepted, 99) <= PROMPT

    def row(self) -> list[str]:
        """A line of the table."""
        total = len(self.accepted) + len(self.refused) + self.others.total()
        return [
            self.name, f"{total / self.seconds:.0f}", f"{len(self.accepted) / self.seconds:.0f}",
            f"{len(self.refused) / self.seconds:.0f}", str(self.others.total()),
            f"{share(self.accepted, 50) * 1000:.0f}", f"{share(self.accepted, 99) * 1000:.0f}",
            f"{share(self.refused, 99) * 1000:.0f}",
        ]  # fmt: skip


HEADINGS = ["", "offered/s", "accepted/s", "refused/s", "neither", "p50 ms", "p99 ms", "p99 ms of refusals"]


def share(times: list[float], percent: int) -> float:
    """The time within which so many of a hundred were answered; 0 without any."""
    if len(times) < 2:
        return times[0] if times else 0.0
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


class Crowd:
    """Clients of one service, on as many connections as they need; they keep those that the service keeps.

    With a `token` they log in by that.
    """

    def __init__(self, service: Service, token: str = "") -> None:
        self._port = service.port
        word = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
        login = f"X-Auth-Token: {token}" if token else f"Authorization: Basic {word}"
        self._head = f"Host: 127.0.0.1\r\n{login}\r\nContent-Type: application/json\r\n"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._count = 0
        #: name of a volume → status of what its creation was answered with
        self.made: dict[str, int] = {}
        self.volumes: list[str] = []

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request; status and body, status 0 without an answer."""
        data = json.dumps(body).encode() if body is not None else b""
        said = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._exchange(said)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
            return 0, b""

    async def _exchange(self, said: bytes) -> tuple[int, bytes]:
        while self._idle and self._idle[-1][0].at_eof():
            self._idle.pop()[1].close()
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        kept = False
        try:
            writer.write(said)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            kept = headers.get("connection") != "close"
            status = int(head.split()[1])
            if status == 503 and not headers.get("retry-after", "").isdecimal():
                raise ValueError("a refusal that does not say when to come again")
            return status, body
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()

    def close(self) -> None:
        """Let go of the connections."""
        while self._idle:
            self._idle.pop()[1].close()

    async def prepare(self) -> None:
        """Make the volumes that are looked at, and have every kind of request asked once."""
        for number in range(VOLUMES):
            status, body = await self.call("POST", "/v3/volumes", {"volume": {"size": 1, "name": f"seen-{number}"}})
            if status != 202:
                raise SystemExit(f"a volume could not be made: {status} {body.decode()}")
            self.volumes.append(json.loads(body)["volume"]["id"])
        await self.stage("warming up", 10, 2)

    async def stage(self, name: str, rate: float, seconds: float) -> Stage:
        """So many requests a second."""
        print(f"{name} …", file=sys.stderr, flush=True)
        found = Stage(name, rate, seconds)
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                due = began + number / rate
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                tasks.create_task(self._one(found, due))
        return found

    async def _one(self, stage: Stage, due: float) -> None:
        self._count += 1
        if self._count % EVERY == 0:
            name = f"made-{self._count}"
            status, _ = await self.call("POST", "/v3/volumes", {"volume": {"size": 1, "name": name}})
            self.made[name] = status
        elif self._count % EVERY == 1:
            status, _ = await self.call("GET", f"/v3/volumes/detail?limit={VOLUMES}")
        else:
            status, _ = await self.call("GET", f"/v3/volumes/{self.volumes[self._count % VOLUMES]}")
        spent = time.monotonic() - due
        if status in {200, 202}:
            stage.accepted.append(spent)
        elif status == 503:
            stage.refused.append(spent)
        else:
            stage.others[status] += 1

    async def ramp(self) -> list[Stage]:
        """More and more requests, until it is too many; the last stage is the one that was."""
        stages = [await self.stage(f"ramp, {FIRST:.0f}/s", FIRST, STEP)]
        while stages[-1].prompt:
            rate = stages[-1].rate * STEEPER
            stages.append(await self.stage(f"ramp, {rate:.0f}/s", rate, STEP))
        return stages

    async def half_done(self) -> list[str]:
        """What is not as its answer said: volumes that were refused and are there, or accepted and are not whole."""
        there: dict[str, str] = {}
        path = "/v3/volumes/detail?limit=1000"
        while path:
            status, body = await self.call("GET", path)
            if status != 200:
                raise SystemExit(f"the volumes could not be listed: {status} {body.decode()}")
            answer = json.loads(body)
            there |= {one["name"]: one["status"] for one in answer["volumes"]}
            links = answer.get("volumes_links", [])
            path = "/v3" + links[0]["href"].partition("/v3")[2] if links else ""
        wrong = [
            f"{name} was refused, and is {there[name]}"
            for name, status in self.made.items()
            if status == 503 and name in there
        ]
        wrong += [
            f"{name} was accepted, and is gone"
            for name, status in self.made.items()
            if status == 202 and name not in there
        ]
        return wrong + [f"{name} is {status}" for name, status in there.items() if status != "available"]

    async def many(self, requests: int, service: Service) -> list[tuple[int, float]]:
        """So many requests of four clients; the MiB of memory after each tenth."""
        found = []
        for tenth in range(1, 11):
            print(f"{tenth * requests // 10} requests …", file=sys.stderr, flush=True)
            counter = iter(range(requests // 10))

            async def ask(turns: Iterator[int]) -> None:
                for number in turns:
                    await self.call("GET", f"/v3/volumes/{self.volumes[number % VOLUMES]}")

            await asyncio.gather(*(ask(counter) for _ in range(4)))
            found.append((tenth * requests // 10, memory(service)))
        return found


def memory(service: Service) -> float:
    """MiB that the service and its processes hold."""
    total = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            said = dict(line.split(":", 1) for line in path.read_text(encoding="ascii", errors="replace").splitlines())
            if str(service.pid) in (said["Pid"].strip(), said["PPid"].strip()) and "VmRSS" in said:
                total += int(said["VmRSS"].split()[0])
    return total / 1024


@contextlib.contextmanager
def running(directory: pathlib.Path, *, fakes: bool) -> Iterator[Service]:
    """A service with the defaults that an operator gets, on a Ceph of its own or on fakes."""
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"quota_volumes": -1, "quota_gigabytes": -1},
        # The lab's pool is small, and a volume for which there is no room ends in error, as it should.
        "ceph": {"max_over_subscription_ratio": 10000},
    }
    if fakes:
        service = Service(directory / "api", directory / "ceph.conf", directory / "sockets", options)
        held = {name: str(directory / name) for name in ("HOLD_GUESTS", "HOLD_CEPH")}
        service.start("backends.fakes_api", HOLD_GUESTS=held["HOLD_GUESTS"], HOLD_CEPH=held["HOLD_CEPH"])
        try:
            yield service
        finally:
            service.stop()
        return
    ceph = Ceph(directory / "ceph")
    try:
        ceph.start()
        service = Service(directory / "api", ceph.conf, directory / "sockets", options)
        service.start()
        try:
            yield service
        finally:
            service.stop()
    finally:
        ceph.destroy()


async def measure(service: Service, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    crowd = Crowd(service)
    await crowd.prepare()
    stages = await crowd.ramp()
    sustained = stages[-2].rate if len(stages) > 1 else FIRST
    await asyncio.sleep(2)
    before = memory(service)
    over = await crowd.stage(
        f"{arguments.factor:g} times {sustained:.0f}/s", sustained * arguments.factor, arguments.seconds
    )
    after = memory(service)
    await asyncio.sleep(2)
    again = await crowd.stage("afterwards", sustained / 2, STEP)
    wrong = await crowd.half_done()
    return {
        "stages": [*stages, over, again],
        "sustained": sustained,
        "memory": (before, after),
        "wrong": wrong,
        "made": collections.Counter(crowd.made.values()),
        "many": await crowd.many(arguments.requests, service) if arguments.requests else [],
    }


def table(rows: list[list[str]]) -> str:
    """Rows with columns that stand below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def report(found: dict[str, Any], where: str) -> tuple[str, bool]:
    """What is printed, and whether all is well."""
    *_, over, again = found["stages"]
    before, after = found["memory"]
    known = machine() | {"cinderlite": commit()} | versions()
    lines = [
        f"on {where}; sustained: {found['sustained']:.0f} requests/s (one in {EVERY} makes a volume)",
        "; ".join([f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", *(f"{key} {one}" for key, one in known.items())]),
        "",
        table([HEADINGS, *(stage.row() for stage in found["stages"])]), "",
        f"memory before and after: {before:.0f} and {after:.0f} MiB",
        f"volumes accepted {found['made'][202]}, refused {found['made'][503]}, half-done {len(found['wrong'])}",
        *found["wrong"][:20],
    ]  # fmt: skip
    well = not found["wrong"] and not over.others and bool(over.refused) and again.prompt
    well = well and share(over.accepted, 99) <= BOUND
    if found["many"]:
        lines += ["", table([["requests", "MiB"], *([str(count), f"{mib:.0f}"] for count, mib in found["many"])])]
        well = well and found["many"][-1][1] <= found["many"][0][1] * (1 + GROWTH)
    return "\n".join([*lines, "", "all is well" if well else "NOT WELL"]), well


def main() -> int:
    """Measure and say what was found; 1 if it is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fakes", action="store_true", help="without Ceph, also where there is one")
    parser.add_argument("--factor", type=float, default=5.0, help="times the sustained rate")
    parser.add_argument("--seconds", type=float, default=20.0, help="of that")
    parser.add_argument("--requests", type=int, default=100_000, help="over which memory must stay; 0 for none")
    parser.add_argument("--json", type=pathlib.Path, help="a file for the figures")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    fakes = arguments.fakes or shutil.which("ceph-osd") is None
    with (
        tempfile.TemporaryDirectory(prefix="clo-", dir="/var/tmp") as name,
        running(pathlib.Path(name), fakes=fakes) as service,
    ):
        found = asyncio.run(measure(service, arguments))
    text, well = report(found, "fakes" if fakes else "a one-node Ceph")
    print(text)
    if arguments.json:
        figures = found | {"stages": [dict(zip(HEADINGS, one.row(), strict=True)) for one in found["stages"]]}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
