# SPDX-License-Identifier: Apache-2.0
"""Breaks one thing after the other, and makes good what it broke, but not what follows from that."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

from faults.cloud import Cloud, Host
from faults.report import Report
from lab.process import LabError, wait

#: Seconds after a death for which requests to that host may be cut off: those that had come in, and while it starts.
_AFTERWARDS = 5.0
_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"


class Saboteur(threading.Thread):
    """At work until `enough`; `repair` leaves everything running."""

    def __init__(self, cloud: Cloud, report: Report, seed: str, enough: threading.Event) -> None:
        super().__init__(name="saboteur", daemon=True)
        self._cloud, self._report = cloud, report
        self._dice = random.Random(f"{seed}/saboteur")
        self._enough = enough
        #: When processes of a host were killed, or could be: host → from, until.
        self._kills: list[tuple[int, float, float]] = []
        self._faults: list[tuple[Callable[[], None], int]] = [
            (self._kill_worker, 6), (self._kill_host, 3), (self._die_at_points, 8), (self._pause_osd, 4),
            (self._pause_monitor, 3), (self._kill_osd, 2), (self._fill_up, 3), (self._cut_database, 4),
            (self._stop_database, 2), (self._kill_guest, 4), (self._kill_libvirt, 2), (self._block_client, 3),
        ]  # fmt: skip

    def killed(self, host: int, since: float) -> bool:
        """Whether a process of a host was, or may have been, killed since a moment or shortly before it."""
        return any(one == host and until + _AFTERWARDS >= since for one, _, until in list(self._kills))

    def run(self) -> None:
        """The thread's work."""
        while not self._enough.is_set():
            faults, weights = zip(*self._faults, strict=True)
            fault = self._dice.choices(faults, weights)[0]
            try:
                fault()
            except LabError as error:
                print(f"{fault.__name__}: {error}", flush=True)
            self._enough.wait(self._dice.uniform(0.5, 3))

    def repair(self) -> None:
        """Have all that should run run. Raises LabError if it does not."""
        with contextlib.suppress(LabError):
            self._cloud.ceph.resume_osd()
            self._cloud.ceph.resume_mon()
        self._cloud.ceph.start()
        self._cloud.ceph.command("osd", "set-full-ratio", "0.95")
        self._cloud.libvirt.start()
        for guest in self._cloud.guests:
            guest.start()
        for host in self._cloud.hosts:
            host.armed.unlink(missing_ok=True)
            wait(host._answers, timeout=60, what=f"{host.name} to answer")

    # -- what breaks

    def _pick(self) -> tuple[int, Host]:
        number = self._dice.randrange(len(self._cloud.hosts))
        return number, self._cloud.hosts[number]

    @contextlib.contextmanager
    def _deadly(self, number: int) -> Iterator[None]:
        began = time.monotonic()
        self._kills.append((number, began, float("inf")))
        try:
            yield
        finally:
            self._kills[-1] = (number, began, time.monotonic())

    def _kill_worker(self) -> None:
        number, host = self._pick()
        with self._deadly(number), contextlib.suppress(ProcessLookupError):
            os.kill(self._dice.choice(host.workers()), signal.SIGKILL)
            self._report.fault("API process killed")

    def _kill_host(self) -> None:
        number, host = self._pick()
        with self._deadly(number):
            host.kill()
            self._report.fault("API host killed")
            # Some times for longer than its leases, so that the other takes its work over.
            self._enough.wait(self._dice.choice([0, 2, 15]))
            host.begin()

    def _die_at_points(self) -> None:
        number, host = self._pick()
        with self._deadly(number):
            host.armed.touch()
            self._enough.wait(self._dice.uniform(1, 6))
            points = host.armed.read_text(encoding="ascii").split()
            host.armed.unlink()
        for point in points:
            self._report.fault(f"death at {point.split('.')[0]}:{point.partition(':')[2] or 'before'}")

    def _pause_osd(self) -> None:
        with self._restored(self._cloud.ceph.resume_osd):
            self._cloud.ceph.pause_osd()
            self._report.fault("OSD stopped")
            self._enough.wait(self._dice.uniform(0.2, 8))

    def _pause_monitor(self) -> None:
        with self._restored(self._cloud.ceph.resume_mon):
            self._cloud.ceph.pause_mon()
            self._report.fault("monitor stopped")
            self._enough.wait(self._dice.uniform(0.2, 8))

    def _kill_osd(self) -> None:
        with self._restored(self._cloud.ceph.start):
            self._cloud.ceph.kill_osd()
            self._report.fault("OSD killed")
            self._enough.wait(self._dice.uniform(0, 3))

    def _fill_up(self) -> None:
        ratio = "set-full-ratio"
        with self._restored(lambda: self._cloud.ceph.command("osd", ratio, "0.95")):
            self._cloud.ceph.command("osd", ratio, "0.0001")
            self._report.fault("cluster full")
            self._enough.wait(self._dice.uniform(1, 8))

    def _cut_database(self) -> None:
        self._cloud.database.administer(_CUT)
        self._report.fault("database connections cut")

    def _stop_database(self) -> None:
        with self._restored(self._cloud.database.start):
            self._cloud.database.crash()
            self._report.fault("database killed")
            self._enough.wait(self._dice.uniform(0, 5))

    def _kill_guest(self) -> None:
        guest = self._dice.choice(self._cloud.guests)
        with self._restored(guest.start):
            guest.kill()
            self._report.fault("guest killed")
            self._enough.wait(self._dice.uniform(0, 6))

    def _kill_libvirt(self) -> None:
        with self._restored(self._cloud.libvirt.start):
            self._cloud.libvirt.kill()
            self._report.fault("libvirtd killed")
            self._enough.wait(self._dice.uniform(0, 6))

    def _block_client(self) -> None:
        sessions = json.loads(self._cloud.ceph.command("tell", "mon.a", "sessions"))
        ours = [one for one in sessions if one.get("entity_name") == f"client.{self._cloud.ceph.user}"]
        if ours:
            address = self._dice.choice(ours)["addrs"]["addrvec"][0]
            self._cloud.ceph.command("osd", "blocklist", "add", f"{address['addr']}/{address['nonce']}", "600")
            self._report.fault("client of the API blocklisted")

    @staticmethod
    @contextlib.contextmanager
    def _restored(restore: Callable[[], object]) -> Iterator[None]:
        try:
            yield
        finally:
            restore()
