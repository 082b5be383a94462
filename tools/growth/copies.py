# SPDX-License-Identifier: Apache-2.0
"""Volumes made beside librbd's images, and snapshots and clones of one."""

from __future__ import annotations

import concurrent.futures
import functools
import statistics
from collections.abc import Callable
from typing import Any

import rados
import rbd

from charts import Chart
from growth.place import Fact, Part, Place, made
from measuring import Client, expect, timed

GIB = 2**30


def creates(place: Place) -> Part:
    """Volumes made by 8 clients, beside images made by 8 threads of librbd."""
    many, turns = 8, 4
    each = place.sizes.creates // turns
    cluster = rados.Rados(conffile=str(place.ceph.conf), name=f"client.{place.ceph.user}")
    cluster.connect()
    ioctx = cluster.open_ioctx(place.ceph.pool)
    rates: dict[str, list[float]] = {"librbd, 8 threads": [], "cinderlite, 8 clients": []}

    def bare(number: int) -> None:
        rbd.RBD().create(ioctx, f"bare-{number}", GIB)

    def ours(number: int) -> None:
        clients[number % many].call("POST", "/v3/volumes", {"volume": {"size": 1}})

    def of_one(work: Callable[[int], None], first: int, client: int) -> None:
        for number in range(first + client, first + each, many):
            work(number)

    with place.service("api") as service, concurrent.futures.ThreadPoolExecutor(many) as pool:
        clients = [Client(service) for _ in range(many)]
        for client in clients:
            made(client)
        for turn in range(turns):
            for name, work in zip(rates, (bare, ours), strict=True):

                def all_at_once(work: Callable[[int], None] = work, first: int = turn * each) -> None:
                    for one in [pool.submit(of_one, work, first, client) for client in range(many)]:
                        one.result()

                rates[name].append(each / timed(all_at_once)[0] * 1000)
    for number in range(turns * each):
        rbd.RBD().remove(ioctx, f"bare-{number}")
    ioctx.close()
    cluster.shutdown()
    medians = [statistics.median(values) for values in rates.values()]
    facts = [Fact(f"{name}, creates/s", round(value, 1)) for name, value in zip(rates, medians, strict=True)]
    return Part([], [*facts, Fact("creates per second / librbd's", round(medians[1] / medians[0], 2), at_least=0.8)])


def copies(place: Place) -> Part:
    """Snapshots of a volume, and clones of one."""
    charts = []
    with place.service("api") as service:
        client = Client(service)
        origin = made(client)

        def snapshot() -> str:
            body = {"snapshot": {"volume_id": origin}}
            return str(client.call("POST", "/v3/snapshots", body)["snapshot"]["id"])

        def snapshots() -> list[Any]:
            return list(client.call("GET", f"/v3/snapshots/detail?volume_id={origin}")["snapshots"])

        charts.append(_copies(place, "snapshots", snapshot, snapshots, lambda id_: _delete(client, "snapshots", id_)))
        chosen = snapshots()[0]["id"]

        def clone() -> str:
            body = {"volume": {"size": 1, "snapshot_id": chosen, "name": "clone"}}
            return str(client.call("POST", "/v3/volumes", body)["volume"]["id"])

        def clones() -> list[Any]:
            return list(client.call("GET", "/v3/volumes/detail?name=clone")["volumes"])

        charts.append(_copies(place, "clones", clone, clones, lambda id_: _delete(client, "volumes", id_)))
    return Part(charts)


def _delete(client: Client, things: str, one: str) -> None:
    client.call("DELETE", f"/v3/{things}/{one}")


def _copies(
    place: Place, things: str, make: Callable[[], str], listed: Callable[[], list[Any]], delete: Callable[[str], None]
) -> Chart:
    lines: dict[str, list[float]] = {"create one more": [], "list": [], "delete it": []}
    there = 0
    for count in place.sizes.copies:
        for _ in range(count - there):
            make()
        there = count
        expect(len(listed()) == count, f"{count} {things}")
        spent = [timed(make) for _ in range(min(10, place.sizes.rounds))]
        lines["list"].append(place.median(listed))
        gone = [timed(functools.partial(delete, one))[0] for _, one in spent]
        lines["create one more"].append(round(statistics.median(one for one, _ in spent), 2))
        lines["delete it"].append(round(statistics.median(gone), 2))
        expect(len(listed()) == count, f"{count} {things} again")
    return Chart(things, f"{things.capitalize()} of one", f"{things} there are", "ms", list(place.sizes.copies), lines)
