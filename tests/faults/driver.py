# SPDX-License-Identifier: Apache-2.0
"""Clients that ask for everything that changes something, and remember what they were promised.

Each client has things of its own, so that it knows what must become of them; all of them meet in the quotas, the
guests, Ceph and the database. Some requests are sent twice at once, to both hosts: one of them must have it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import random
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

from backends.service import Answer
from faults.cloud import GROUP_TYPE, SECOND, TYPES, Cloud
from faults.data import EMPTY, Data
from faults.report import Report
from faults.saboteur import Saboteur

#: Seconds within which each request must have its answer, whatever is broken.
ANSWERED_WITHIN = 60.0
#: Volumes that one client has, and GiB that one volume has at most.
MOST, BIGGEST = 5, 4
#: Seconds for which a client waits for a thing to come to rest before it goes on with another.
PATIENCE = 6.0

VOLUME, SNAPSHOT, BACKUP, GROUP, GROUP_SNAPSHOT = "volumes", "snapshots", "backups", "groups", "group_snapshots"
VERSION = "3.71"
TENANTS = {"alice": "demo", "bob": "other"}


@dataclasses.dataclass
class Thing:
    """Something that was promised. `digests` are the data that it may have, `sizes` the GiB.

    `gone` says whether its end was "asked" for, or "accepted"; what was asked for without an answer may be or not be.
    """

    kind: str
    id: str
    user: str = "alice"
    digests: frozenset[str] = frozenset({EMPTY})
    sizes: frozenset[int] = frozenset({1})
    gone: str = ""
    of: Thing | None = None
    #: What its data are taken from, at some moment until it is there.
    source: Thing | None = None
    #: Whether it has ever been seen at rest and well.
    usable: bool = False

    def __str__(self) -> str:
        data = " or ".join(sorted(one[:8] for one in self.digests))
        return f"{self.kind[:-1]} {self.id} of {self.user} ({data}; {sorted(self.sizes)} GiB)"


class Unknown(Exception):
    """No answer came: the request may have been done or not."""


class Client(threading.Thread):
    """Asks until `enough`; `things` is what it was promised, with what became of that as far as it knows.

    `failure` is what nobody foresaw, and ended it.
    """

    def __init__(
        self,
        number: int,
        cloud: Cloud,
        data: Data,
        report: Report,
        saboteur: Saboteur,
        seed: str,
        enough: threading.Event,
    ) -> None:
        super().__init__(name=f"client{number}", daemon=True)
        self.things: list[Thing] = []
        self.failure: Exception | None = None
        self._cloud, self._data, self._report, self._saboteur = cloud, data, report, saboteur
        self._dice = random.Random(f"{seed}/{number}")
        self._enough = enough
        self._twin = concurrent.futures.ThreadPoolExecutor(1)
        self._works: list[tuple[Callable[[], None], int]] = [
            (self._create, 8), (self._clone, 5), (self._write, 10), (self._extend, 4), (self._snapshot, 6),
            (self._delete_snapshot, 3), (self._attach, 8), (self._detach, 8), (self._transfer, 3), (self._retype, 4),
            (self._back_up, 5), (self._restore, 3), (self._delete_backup, 2), (self._group, 1), (self._fill, 3),
            (self._group_snapshot, 2), (self._delete_group_snapshot, 2), (self._delete_group, 1), (self._delete, 7),
        ]  # fmt: skip

    def run(self) -> None:
        """The thread's work."""
        try:
            while not self._enough.is_set():
                works, weights = zip(*self._works, strict=True)
                with contextlib.suppress(Unknown):
                    self._dice.choices(works, weights)[0]()
                self._enough.wait(self._dice.uniform(0, 0.3))
        except Exception as error:
            self.failure = error
            raise

    # -- asking

    def _ask(
        self, kind: str, method: str, path: str, body: Any = None, *, user: str = "alice", twice: bool = False
    ) -> Answer:
        """The answer; if it was sent twice the one that says most of what was done. Raises Unknown."""
        hosts = self._dice.sample(range(len(self._cloud.hosts)), 2)
        other = self._twin.submit(self._send, kind, hosts[1], method, path, body, user) if twice else None
        answers = []
        with contextlib.suppress(Unknown):
            answers.append(self._send(kind, hosts[0], method, path, body, user))
        if other is not None:
            with contextlib.suppress(Unknown):
                answers.append(other.result())
        for answer in answers:
            if answer.status < 300:
                return answer
        if len(answers) < 1 + twice:
            raise Unknown
        return max(answers, key=lambda answer: answer.status)  # What was 503 may have been done, and refused the other.

    def _send(self, kind: str, host: int, method: str, path: str, body: Any, user: str) -> Answer:
        began = time.monotonic()
        version = "2.89" if path.startswith("/v2.1") else VERSION
        what = f"{method} {path} by {user} at host {host}"
        try:
            answer = self._cloud.hosts[host].call(
                method, path, body, user=user, version=version, timeout=ANSWERED_WITHIN
            )
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                self._report.operation(kind, "unanswered")
                self._report.wrong("unanswered", f"{what} within {ANSWERED_WITHIN:g} s")
            else:
                self._report.operation(kind, "cut off")
                if not self._saboteur.killed(host, began):
                    self._report.wrong("unanswered", f"{what}: {reason!r}, and nobody had killed a process there")
            raise Unknown from error
        word = "accepted" if answer.status < 300 else "unavailable" if answer.status == 503 else "refused"
        self._report.operation(kind, word)
        if answer.status >= 500 and answer.status != 503:
            self._report.wrong("wrong answer", f"{what}: {answer.status} {answer.text}")
        return answer

    def _look(self, thing: Thing) -> dict[str, Any]:
        """A thing as it is now; empty if that cannot be told."""
        for host in self._dice.sample(self._cloud.hosts, len(self._cloud.hosts)):
            with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
                answer = host.call("GET", f"/v3/{thing.kind}/{thing.id}", user="root", version=VERSION, timeout=20)
                if answer.status == 200:
                    return dict(answer.body[thing.kind.removesuffix("s")])
        return {}

    def _is_there(self, thing: Thing) -> bool:
        thing.usable = thing.usable or self._look(thing).get("status") in ("available", "in-use")
        return thing.usable

    def _settled(self, thing: Thing) -> dict[str, Any]:
        """A thing as it came to rest; empty if it did not yet."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not self._enough.is_set():
            shown = self._look(thing)
            if shown.get("status") in ("available", "in-use"):
                thing.usable = True
                return shown
            if str(shown.get("status", "")).startswith("error"):
                return {}
            self._enough.wait(0.2)
        return {}

    def _promise(self, answer: Answer, thing: Callable[[dict[str, Any]], Thing], key: str) -> Thing | None:
        if answer.status >= 300:
            return None
        made = thing(answer.body[key])
        self.things.append(made)
        return made

    def _pick(self, kind: str, which: Callable[[Thing], bool] = lambda _one: True) -> Thing | None:
        found = [one for one in self.things if one.kind == kind and not one.gone and which(one)]
        return self._dice.choice(found) if found else None

    @contextlib.contextmanager
    def _ending(self, *things: Thing) -> Iterator[Callable[[Answer], None]]:
        """Note that things are asked to end, and what came of the asking."""
        before = [one.gone for one in things]
        for one in things:
            one.gone = one.gone or "asked"

        def told(answer: Answer) -> None:
            if answer.status != 503:  # A database that went away while it committed may have done so.
                for one, was in zip(things, before, strict=True):
                    one.gone = "accepted" if answer.status < 300 else was

        yield told

    def _has_many(self) -> bool:
        return sum(one.kind == VOLUME and not one.gone for one in self.things) >= MOST

    # -- what is asked for

    def _create(self) -> None:
        if self._has_many():
            return
        fields = {"size": 1, "volume_type": self._dice.choice([*TYPES.values(), "__DEFAULT__"])}
        answer = self._ask("create", "POST", "/v3/volumes", {"volume": fields})
        made = self._promise(answer, lambda body: Thing(VOLUME, body["id"]), "volume")
        if made is not None:
            self._settled(made)

    def _clone(self) -> None:
        """A volume of a snapshot or another volume."""
        source = self._pick(self._dice.choice([VOLUME, SNAPSHOT]), lambda one: one.user == "alice")
        if source is None or self._has_many():
            return
        key = "source_volid" if source.kind == VOLUME else "snapshot_id"
        body = {"volume": {"size": max(source.sizes), key: source.id}}
        answer = self._ask("clone", "POST", "/v3/volumes", body)
        self._promise(
            answer,
            lambda one: Thing(VOLUME, one["id"], "alice", source.digests, frozenset({one["size"]}), source=source),
            "volume",
        )

    def _write(self) -> None:
        volume = self._pick(VOLUME)
        shown = self._settled(volume) if volume else {}
        if volume is None or shown.get("status") != "available":
            return
        pool = SECOND if f"@{SECOND}#" in shown["os-vol-host-attr:host"] else self._cloud.ceph.pool
        writing = self._data.write(pool, f"volume-{volume.id}")
        digest = next(writing)
        volume.digests |= {digest}
        for one in self.things:
            if one.source is volume and not one.usable and not self._is_there(one):
                one.digests |= {digest}
        try:
            next(writing, None)
        except OSError:
            self._report.operation("write", "unavailable")
        else:
            volume.digests = frozenset({digest})
            self._report.operation("write", "accepted")

    def _extend(self) -> None:
        volume = self._pick(VOLUME, lambda one: max(one.sizes) < BIGGEST)
        if volume is None:
            return
        size, before = max(volume.sizes) + 1, volume.sizes
        volume.sizes |= {size}
        answer = self._act("extend", volume, {"os-extend": {"new_size": size}})
        if answer.status == 202:
            volume.sizes = frozenset({size})
        elif answer.status != 503:
            volume.sizes = before

    def _act(self, kind: str, volume: Thing, body: dict[str, Any]) -> Answer:
        return self._ask(kind, "POST", f"/v3/volumes/{volume.id}/action", body, user=volume.user)

    def _snapshot(self) -> None:
        volume = self._pick(VOLUME)
        if volume is None:
            return
        body = {"snapshot": {"volume_id": volume.id, "force": True}}
        answer = self._ask("snapshot", "POST", "/v3/snapshots", body, user=volume.user)
        self._promise(
            answer,
            lambda one: Thing(
                SNAPSHOT, one["id"], volume.user, volume.digests, frozenset({one["size"]}), of=volume, source=volume
            ),
            "snapshot",
        )

    def _delete_snapshot(self) -> None:
        self._end("delete snapshot", self._pick(SNAPSHOT))

    def _end(self, kind: str, thing: Thing | None, *with_it: Thing, query: str = "") -> None:
        if thing is None:
            return
        with self._ending(thing, *with_it) as told:
            twice = self._dice.random() < 0.2
            told(self._ask(kind, "DELETE", f"/v3/{thing.kind}/{thing.id}{query}", user=thing.user, twice=twice))

    def _attach(self) -> None:
        volume = self._pick(VOLUME, lambda one: one.user == "alice")
        if volume is not None:
            server = self._dice.choice(self._cloud.guests).uuid
            body = {"volumeAttachment": {"volumeId": volume.id}}
            path = f"/v2.1/servers/{server}/os-volume_attachments"
            self._ask("attach", "POST", path, body, twice=self._dice.random() < 0.2)

    def _detach(self) -> None:
        for volume in [one for one in self.things if one.kind == VOLUME and not one.gone]:
            for one in self._look(volume).get("attachments", []):
                path = f"/v2.1/servers/{one['server_id']}/os-volume_attachments/{volume.id}"
                self._ask("detach", "DELETE", path)
                return

    def _transfer(self) -> None:
        """Hand a volume with nothing beside it to the other project, or back."""
        volume = self._pick(VOLUME, lambda one: not any(other.of is one and not other.gone for other in self.things))
        if volume is None:
            return
        offer = {"transfer": {"volume_id": volume.id}}
        answer = self._ask("offer", "POST", "/v3/volume-transfers", offer, user=volume.user)
        if answer.status >= 300:
            return
        told = answer.body["transfer"]
        taker = "bob" if volume.user == "alice" else "alice"
        accept = {"accept": {"auth_key": told["auth_key"]}}
        with contextlib.suppress(Unknown):
            self._ask("transfer", "POST", f"/v3/volume-transfers/{told['id']}/accept", accept, user=taker)
        shown: dict[str, Any] = {}
        while not shown and not self._enough.is_set():
            shown = self._settled(volume)
        tenant = shown.get("os-vol-tenant-attr:tenant_id")
        volume.user = next((user for user, project in TENANTS.items() if project == tenant), volume.user)

    def _retype(self) -> None:
        volume = self._pick(VOLUME)
        if volume is not None:
            kind = self._dice.choice([*TYPES.values(), "__DEFAULT__"])
            body = {"os-retype": {"new_type": kind, "migration_policy": "on-demand"}}
            self._act("retype", volume, body)

    def _back_up(self) -> None:
        volume = self._pick(VOLUME)
        if volume is None:
            return
        body = {"backup": {"volume_id": volume.id, "force": True, "incremental": self._dice.random() < 0.5}}
        answer = self._ask("backup", "POST", "/v3/backups", body, user=volume.user)
        made = self._promise(
            answer,
            lambda one: Thing(BACKUP, one["id"], volume.user, volume.digests, volume.sizes, of=volume, source=volume),
            "backup",
        )
        if made is not None:
            self._settled(made)

    def _restore(self) -> None:
        backup = self._pick(BACKUP, lambda one: one.user == "alice")
        if backup is None or self._has_many():
            return
        answer = self._ask("restore", "POST", f"/v3/backups/{backup.id}/restore", {"restore": {}})
        self._promise(
            answer, lambda one: Thing(VOLUME, one["volume_id"], "alice", backup.digests, backup.sizes), "restore"
        )

    def _delete_backup(self) -> None:
        self._end("delete backup", self._pick(BACKUP))

    def _group(self) -> None:
        if self._pick(GROUP) is None:
            body = {"group": {"group_type": GROUP_TYPE, "volume_types": ["__DEFAULT__"]}}
            self._promise(self._ask("group", "POST", "/v3/groups", body), lambda one: Thing(GROUP, one["id"]), "group")

    def _fill(self) -> None:
        group = self._pick(GROUP)
        if group is None or sum(one.of is group and not one.gone for one in self.things) > 1:
            return
        fields = {"size": 1, "volume_type": "__DEFAULT__", "group_id": group.id}
        answer = self._ask("create in group", "POST", "/v3/volumes", {"volume": fields})
        self._promise(answer, lambda one: Thing(VOLUME, one["id"], of=group), "volume")

    def _group_snapshot(self) -> None:
        group = self._pick(GROUP)
        if group is not None:
            body = {"group_snapshot": {"group_id": group.id}}
            answer = self._ask("group snapshot", "POST", "/v3/group_snapshots", body)
            self._promise(answer, lambda one: Thing(GROUP_SNAPSHOT, one["id"], of=group), "group_snapshot")

    def _delete_group_snapshot(self) -> None:
        self._end("delete gr. snap.", self._pick(GROUP_SNAPSHOT))

    def _delete_group(self) -> None:
        group = self._pick(GROUP)
        if group is None:
            return
        members = [one for one in self.things if one.of is group and not one.gone]
        with self._ending(group, *members) as told:
            body = {"delete": {"delete-volumes": True}}
            told(self._ask("delete group", "POST", f"/v3/groups/{group.id}/action", body))

    def _delete(self) -> None:
        volume = self._pick(VOLUME)
        if volume is not None:
            snapshots = [one for one in self.things if one.of is volume and one.kind == SNAPSHOT and not one.gone]
            self._end("delete", volume, *snapshots, query="?cascade=true")
