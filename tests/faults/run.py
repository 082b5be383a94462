# SPDX-License-Identifier: Apache-2.0
"""Runs all operations at once while everything breaks, and says what came of it; see `tox -e faults`.

FAULTS_SECONDS says for how long, FAULTS_SEED what is chosen; what falls together with what is the machine's to say. The
exit status is 1 if anything was found wrong, 2 if the suite itself did not work.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import secrets
import sys
import tempfile
import threading

from faults.cloud import Cloud, started
from faults.data import Data
from faults.driver import ANSWERED_WITHIN, Client
from faults.judge import Judge
from faults.report import Report
from faults.saboteur import Saboteur
from lab.process import LabError

SECONDS = 300.0
CLIENTS = 6


def play(cloud: Cloud, report: Report, seconds: float, clients: int) -> None:
    """Let all of them work for some time, then judge. Raises LabError."""
    data = Data(cloud.ceph)
    calm, enough = threading.Event(), threading.Event()
    saboteur = Saboteur(cloud, report, report.seed, enough)
    asking = [Client(number, cloud, data, report, saboteur, report.seed, calm) for number in range(clients)]
    try:
        for one in (*asking, saboteur):
            one.start()
        enough.wait(seconds)
        enough.set()
        saboteur.join(120)
        calm.set()
        for client in asking:
            client.join(2 * ANSWERED_WITHIN)
        if any(one.is_alive() for one in (*asking, saboteur)):
            raise LabError("a client or the saboteur did not end")
        for client in asking:
            if client.failure is not None:
                raise LabError(f"{client.name} failed: {client.failure!r}") from client.failure
        saboteur.repair()
        Judge(cloud, data, report, [thing for client in asking for thing in client.things]).judge()
    finally:
        data.close()


def main() -> int:
    """Play as the environment and the command line say, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="how many ask at a time")
    parser.add_argument("--report", type=pathlib.Path, help="a file that gets the report, too")
    parser.add_argument("--directory", type=pathlib.Path, help="where everything is kept; a temporary one by default")
    options = parser.parse_args()
    report = Report(os.environ.get("FAULTS_SEED") or secrets.token_hex(4))
    print(f"FAULTS_SEED={report.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as temporary:
        try:
            with started(options.directory or pathlib.Path(temporary)) as cloud:
                play(cloud, report, float(os.environ.get("FAULTS_SECONDS", SECONDS)), options.clients)
        except LabError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(report.text())
    if options.report:
        options.report.write_text(report.text(), encoding="utf-8")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
