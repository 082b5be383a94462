# SPDX-License-Identifier: Apache-2.0
"""Disks of a server, and servers of a host."""

from __future__ import annotations

import functools
import statistics

from backends.monitors import Crowd as Monitors
from charts import Chart
from growth.place import Part, Place, made
from lab.guest import Guest
from measuring import Client, available, expect, timed


def disks(place: Place) -> Part:
    """Disks of one server, by virtio-scsi; no operating system is there to be waited for."""
    lines: dict[str, list[float]] = {"attach one more": [], "list": [], "detach it": []}
    sockets = place.directory / "s"
    guest = Guest(place.directory, "vm", sockets=sockets, ports=0, scsi=True, memory=48, guest_os=False)
    try:
        guest.start()
        with place.service("api", sockets) as service:
            client, path = Client(service), f"/v2.1/servers/{guest.uuid}/os-volume_attachments"
            attached: list[str] = []
            for count in place.sizes.disks:
                while len(attached) < count - 1:
                    attached.append(made(client))
                    _attach(client, path, attached[-1])
                volume = made(client)
                there, gone = _to_and_fro(client, path, volume, min(10, place.sizes.rounds))
                _attach(client, path, volume)
                attached.append(volume)
                expect(len(client.call("GET", path)["volumeAttachments"]) == count, f"{count} attachments")
                lines["attach one more"].append(there)
                lines["list"].append(place.median(functools.partial(client.call, "GET", path)))
                lines["detach it"].append(gone)
    finally:
        guest.forget()
    return Part([Chart("disks", "Disks of one server", "disks it has then", "ms", list(place.sizes.disks), lines)])


def _to_and_fro(client: Client, path: str, volume: str, times: int) -> tuple[float, float]:
    """Attach and detach a volume some times; median milliseconds of each."""
    there, gone = [], []
    for _ in range(times):
        there.append(timed(functools.partial(_attach, client, path, volume))[0])
        gone.append(timed(functools.partial(client.call, "DELETE", f"{path}/{volume}"))[0])
        available(client, volume)
    return round(statistics.median(there), 2), round(statistics.median(gone), 2)


def _attach(client: Client, path: str, volume: str) -> None:
    client.call("POST", path, {"volumeAttachment": {"volumeId": volume}})


def servers(place: Place) -> Part:
    """Servers of the host: simulated monitors, which answer from the clients' process."""
    lines: dict[str, list[float]] = {"list": [], "find one": [], "attach to one": [], "detach": []}
    for count in place.sizes.servers:
        sockets = place.directory / f"s{count}"
        sockets.mkdir()
        monitors = Monitors(sockets, count)
        monitors.start()
        try:
            for peer in monitors.peers:
                peer.write_owner("demo")
            with place.service(f"api{count}", sockets) as service:
                client = Client(service)
                there = client.call("GET", "/v2.1/servers/detail")["servers"]
                expect(len(there) == count, f"{count} servers, not {len(there)}")
                one = f"/v2.1/servers/{there[count // 2]['id']}"
                lines["list"].append(place.median(functools.partial(client.call, "GET", "/v2.1/servers/detail")))
                lines["find one"].append(place.median(functools.partial(client.call, "GET", one)))
                path = f"{one}/os-volume_attachments"
                came, gone = _to_and_fro(client, path, made(client), place.sizes.rounds)
                asked = {peer.id for peer in monitors.peers if "device_add" in peer.said}
                expect(asked == {there[count // 2]["id"]}, "one server to be plugged into")
                lines["attach to one"].append(came)
                lines["detach"].append(gone)
        finally:
            monitors.stop()
    return Part([Chart("servers", "Requests to one host", "servers", "ms", list(place.sizes.servers), lines)])
