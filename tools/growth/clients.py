# SPDX-License-Identifier: Apache-2.0
"""Clients at a time, processes of the service, ways to log in, and memory over many requests."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Iterator

from backends import keystone
from backends.service import Service
from charts import Chart
from growth.place import Fact, Part, Place, made
from lab import packages
from measuring import Client, expect, processor
from overloading import Crowd, memory, share

#: Seconds that the service asks a client whom it refuses to wait.
RETRY_AFTER = 5.0


@dataclasses.dataclass(frozen=True)
class Load:
    """What some clients got that each ask again as soon as they are answered, unless refused. Times in seconds."""

    rate: float
    times: list[float]
    refused: int
    #: requests for each second of a processor that the service used
    per_core: float


Ask = Callable[[Crowd, int], Awaitable[tuple[int, bytes]]]


def load(service: Service, clients: int, seconds: float, ask: Ask, token: str = "") -> Load:
    """So many clients for some seconds, each on a connection of its own."""
    times: list[float] = []
    refused = 0

    async def one(crowd: Crowd, until: float) -> None:
        nonlocal refused
        while (began := time.monotonic()) < until:
            status, body = await ask(crowd, len(times))
            expect(status in {200, 202, 503}, f"an answer, not {status} {body.decode()}")
            if status == 503:
                refused += 1
                await asyncio.sleep(min(RETRY_AFTER, max(0.0, until - time.monotonic())))
            else:
                times.append(time.monotonic() - began)

    async def all_of_them() -> tuple[float, float]:
        crowd = Crowd(service, token)
        used, began = processor(service), time.monotonic()
        await asyncio.gather(*(one(crowd, began + seconds) for _ in range(clients)))
        crowd.close()
        return time.monotonic() - began, processor(service) - used

    spent, used = asyncio.run(all_of_them())
    expect(bool(times) and used > 0, "some answers")
    return Load(len(times) / spent, times, refused, (len(times) + refused) / used)


def showing(volume: str) -> Ask:
    """Clients that look at a volume."""
    return lambda crowd, _: crowd.call("GET", f"/v3/volumes/{volume}")


def creating(crowd: Crowd, number: int) -> Awaitable[tuple[int, bytes]]:
    """Clients that make volumes."""
    return crowd.call("POST", "/v3/volumes", {"volume": {"size": 1, "name": f"load {number}"}})


def clients(place: Place) -> Part:
    """Clients at a time, of one process of the service."""
    found: dict[str, list[Load]] = {"show": [], "create": []}
    with place.service("api") as service:
        volume = made(Client(service))
        for name, ask in (("show", showing(volume)), ("create", creating)):
            load(service, 1, place.sizes.seconds / 4, ask)
            found[name] = [load(service, count, place.sizes.seconds, ask) for count in place.sizes.clients]
    steps, axis = list(place.sizes.clients), "clients"
    rates = {name: [round(one.rate, 1) for one in loads] for name, loads in found.items()}
    times = {
        f"{name}, p{percent}": [round(share(one.times, percent) * 1000, 1) for one in loads]
        for name, loads in found.items()
        for percent in (50, 99)
    }
    facts = [
        Fact(f"{name}: refused of {steps[-1]} clients", loads[-1].refused) for name, loads in found.items()
    ]  # fmt: skip
    return Part(
        [
            Chart("clients-rate", "Answers of one process", axis, "requests/s", steps, rates),
            Chart("clients-time", "Times of one process", axis, "ms", steps, times),
        ],
        facts,
    )


def processes(place: Place) -> Part:
    """Processes of the service, with 16 clients."""
    lines: dict[str, list[float]] = {"show": [], "create": []}
    for count in place.sizes.workers:
        with place.service(f"api{count}", options={"DEFAULT": {"osapi_volume_workers": count}}) as service:
            for name, ask in (("show", showing(made(Client(service)))), ("create", creating)):
                load(service, 16, place.sizes.seconds / 4, ask)
                lines[name].append(round(load(service, 16, place.sizes.seconds, ask).rate, 1))
    steps = list(place.sizes.workers)
    return Part([Chart("processes", "Answers to 16 clients", "processes of the service", "requests/s", steps, lines)])


def logins(place: Place) -> Part:
    """What a show takes of a processor, with a password file and with a token of a real Keystone.

    The machine's processors are the clients' too, so answers per second of a processor that the service's processes
    used are what one of them can give. Keystone's own time does not count: the service asks it once for a token.
    """
    facts = []
    with place.service("passwords") as service:
        ask = showing(made(Client(service)))
        load(service, 8, place.sizes.seconds / 4, ask)
        found = load(service, 8, place.sizes.seconds, ask)
        facts.append(Fact("show per second of a processor, http_basic", round(found.per_core), at_least=600))
    packages.ensure(keystone.PACKAGES)
    cloud = keystone.Keystone(place.directory / "keystone", "http://127.0.0.1:9")  # Nobody looks into its catalogue.
    try:
        cloud.start()
        trusting: dict[str, dict[str, object]] = {
            "DEFAULT": {"auth_strategy": "keystone"},
            "keystone_authtoken": cloud.middleware(),
        }
        with place.service("tokens", options=trusting) as service:
            token = cloud.token("alice")
            ask = showing(made(Client(service, token)))
            load(service, 8, place.sizes.seconds / 4, ask, token)
            found = load(service, 8, place.sizes.seconds, ask, token)
            facts.append(Fact("show per second of a processor, keystone", round(found.per_core), at_least=600))
    finally:
        cloud.stop()
    return Part([], facts)


def requests(place: Place) -> Part:
    """Memory of all the service's processes over many requests of 8 clients, some of which make and delete volumes."""
    many = place.sizes.requests
    found = []
    with place.service("api") as service:
        volume = made(Client(service))

        async def one(crowd: Crowd, turns: Iterator[int]) -> None:
            fresh = ""
            for number in turns:
                if fresh:
                    status, _ = await crowd.call("DELETE", f"/v3/volumes/{fresh}")
                    fresh = ""
                elif number % 50 == 0:
                    status, body = await creating(crowd, number)
                    fresh = str(json.loads(body)["volume"]["id"])
                elif number % 10 == 0:
                    status, _ = await crowd.call("GET", "/v3/volumes/detail?limit=50")
                else:
                    status, _ = await crowd.call("GET", f"/v3/volumes/{volume}")
                expect(status in {200, 202}, f"an answer, not {status}")

        async def all_of_them() -> None:
            crowd = Crowd(service)
            for _ in range(10):
                turns = iter(range(many // 10))
                await asyncio.gather(*(one(crowd, turns) for _ in range(8)))
                found.append(round(memory(service), 1))
            crowd.close()

        begin = round(memory(service), 1)
        asyncio.run(all_of_them())
    steps = [many // 10 * tenth for tenth in range(11)]
    chart = Chart("requests", "Memory of all processes", "requests", "MiB", steps, {"resident": [begin, *found]})
    return Part([chart], [Fact("memory at the end / in the middle", round(found[-1] / found[4], 3), at_most=1.05)])
