# SPDX-License-Identifier: Apache-2.0
"""Counters and timers, named once; `/metrics` prints them for Prometheus.

With several API processes prometheus_client sums over a directory that `cmd.api` names before anything is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import prometheus_client
from prometheus_client import multiprocess

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = prometheus_client.Histogram(
    "cinderlite_request_seconds",
    "Requests answered, by operation and status code",
    ["service", "operation", "code"],
    buckets=_FAST,
)
OPERATIONS = prometheus_client.Histogram(
    "cinderlite_operation_seconds",
    "Operations on storage and guests, by verb and result (done, failed, postponed)",
    ["verb", "result"],
    buckets=_FAST,
)
BACKEND = prometheus_client.Histogram(
    "cinderlite_backend_seconds",
    "Calls to Ceph and to hypervisors, by verb and success",
    ["backend", "verb", "ok"],
    buckets=_FAST,
)
SHED = prometheus_client.Counter(
    "cinderlite_requests_shed",
    "Requests refused with 503, by class (quick, slow, any) and reason (full: too many waited; late: too long)",
    ["class", "reason"],
)
RUNNING = prometheus_client.Gauge(
    "cinderlite_requests_running", "Requests at work, by class", ["class"], multiprocess_mode="livesum"
)
WAITING = prometheus_client.Gauge(
    "cinderlite_requests_waiting", "Requests that wait for a place, by class", ["class"], multiprocess_mode="livesum"
)
CUT_OFF = prometheus_client.Counter(
    "cinderlite_connections_cut_off",
    "Connections closed because a request did not come in whole, by reason (slow, crowded)",
    ["reason"],
)
SILENT_GUESTS = prometheus_client.Counter(
    "cinderlite_silent_guests",
    "How often a server's monitor, or a host's libvirt, fell silent, so that it is left alone for a while",
)
FLATTENS_WAITING = prometheus_client.Gauge(
    "cinderlite_flattens_waiting",
    "Volumes beyond rbd_max_clone_depth, or restored, whose image nobody has begun to make whole",
    ["backend"],
    multiprocess_mode="livemax",
)
FLATTENS_RUNNING = prometheus_client.Gauge(
    "cinderlite_flattens_running", "Images that are being made whole", multiprocess_mode="livesum"
)
FLATTEN_OBJECTS_LEFT = prometheus_client.Gauge(
    "cinderlite_flatten_objects_left",
    "Objects still to be done of the images that are being made whole",
    multiprocess_mode="livesum",
)
#: The figures of the database are the same in all processes of all hosts: take the largest. See `core.gauges`.
WORK = prometheus_client.Gauge(
    "cinderlite_work",
    "Rows with work under way, by table, verb and whether a process is at it (running) or none (waiting)",
    ["kind", "verb", "state"],
    multiprocess_mode="livemostrecent",
)
WORK_AGE = prometheus_client.Gauge(
    "cinderlite_work_oldest_seconds",
    "How long ago the oldest of that work was begun",
    ["kind", "verb", "state"],
    multiprocess_mode="livemostrecent",
)
TAKEN_OVER = prometheus_client.Counter(
    "cinderlite_leases_taken_over", "Work taken over from a process that was dead, or lost its lease", ["kind"]
)
RECORDS_WAITING = prometheus_client.Gauge(
    "cinderlite_records_waiting",
    "Rows that changed and whose record in Ceph has not been written yet",
    ["kind"],
    multiprocess_mode="livemostrecent",
)
VOLUMES = prometheus_client.Gauge(
    "cinderlite_volumes", "Volumes by status", ["status"], multiprocess_mode="livemostrecent"
)
VOLUME_BYTES = prometheus_client.Gauge(
    "cinderlite_volume_bytes", "Sizes of volumes by status", ["status"], multiprocess_mode="livemostrecent"
)
CEPH_ANSWERS = prometheus_client.Gauge(
    "cinderlite_ceph_answers",
    "Whether a back end's Ceph answers; while it does not, requests that need it are refused at once",
    ["backend"],
    multiprocess_mode="livemin",
)
POOL_TOTAL = prometheus_client.Gauge(
    "cinderlite_pool_total_bytes",
    "What a back end's pool can hold, used or not",
    ["backend"],
    multiprocess_mode="livemostrecent",
)
POOL_FREE = prometheus_client.Gauge(
    "cinderlite_pool_free_bytes", "What still fits into it", ["backend"], multiprocess_mode="livemostrecent"
)
POOL_PROVISIONED = prometheus_client.Gauge(
    "cinderlite_pool_provisioned_bytes",
    "What its images would be if they were full",
    ["backend"],
    multiprocess_mode="livemostrecent",
)
JOB_THREADS = prometheus_client.Gauge(
    "cinderlite_job_threads", "Jobs that could run at a time", ["pool"], multiprocess_mode="livesum"
)
JOBS_RUNNING = prometheus_client.Gauge(
    "cinderlite_jobs_running", "Jobs that run", ["pool"], multiprocess_mode="livesum"
)
PASSED = prometheus_client.Gauge(
    "cinderlite_pass_timestamp_seconds",
    "When the reconciler last came to the end of a pass; of several processes the one for which that is longest ago",
    multiprocess_mode="livemin",
)


def observe_ceph(verb: str, seconds: float, ok: bool) -> None:
    """Count one librbd or librados call."""
    BACKEND.labels("ceph", verb, str(ok).lower()).observe(seconds)


def observe_guest(verb: str, seconds: float, ok: bool) -> None:
    """Count one call to a hypervisor."""
    BACKEND.labels("guest", verb, str(ok).lower()).observe(seconds)


def exposition() -> tuple[bytes, str]:
    """The text of /metrics and its content type."""
    registry = prometheus_client.REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = prometheus_client.CollectorRegistry()
        _OfAllProcesses(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry), prometheus_client.CONTENT_TYPE_LATEST


class _OfAllProcesses(multiprocess.MultiProcessCollector):
    """prometheus_client's fails if a process is just making a file, which is empty for a moment."""

    def collect(self) -> Iterable[prometheus_client.Metric]:
        """What all the files say that say anything."""
        with os.scandir(self._path) as entries:
            files = [entry.path for entry in entries if entry.name.endswith(".db") and _has_begun(entry)]
        merged: Iterable[prometheus_client.Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _has_begun(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat().st_size > 0
    except FileNotFoundError:  # Its process has ended.
        return False
