# SPDX-License-Identifier: Apache-2.0
"""How a row changes its status: every lifecycle as a table, and the two commits around each step.

*Begin*: one conditional UPDATE moves the row into the verb's transitional status and writes down the intent. Who
loses the race changes nothing: the status is the lock. That commit is the acceptance. *Step*: the work on Ceph or a
guest, idempotent over names that follow from the row's id. *Settle*: a second commit writes the outcome and clears
the intent. A process that dies in between leaves an intent, and `core.reconcile` runs the very same step again.

Leases go by the database's clock (`db.clock`): those of the hosts may be minutes apart.

What a newcomer gets wrong: a step that ends with `errors.Unavailable` has an *unknown* end. The row keeps its intent
(or turns to the move named in `doubt`) and nobody may guess the outcome; only looking at Ceph or QEMU again tells. Nor
does anybody before a call that was given up has really ended: until then its process keeps the lease.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from cinderlite import errors, failpoints, metrics
from cinderlite.context import World
from cinderlite.db import clock, models
from cinderlite.jobs import Jobs

LOG = logging.getLogger(__name__)

#: As `Move.then`: the row is gone when the verb succeeds.
GONE = "(gone)"
#: As `Move.then` or `Move.failure`: back to the status before the verb.
RETURN = "(return)"
#: Seconds between two tries of a step whose end is unknown; with each try twice as many, up to the move's patience.
RETRY_AFTER = 2.0
#: How often a busy image is tried again, every RETRY_AFTER. A dead client's watch lapses after 30 s.
_BUSY_TRIES = 30
#: Before the owner of a lease: it must leave off, and the row waits for that.
_TOLD_TO_STOP = "stop "

Step = Callable[[World, Any, Mapping[str, Any]], Mapping[str, Any] | None]
Settled = Callable[[Session, Any, Mapping[str, Any], "errors.CinderliteError | None"], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """One verb: from which statuses, through which, to which.

    `refused` errors mean that nothing was done and the row goes back whatever `failure` says. `doubt` is the verb
    that takes over when the end of the step is unknown; without it the same verb is tried again. The step of a `long`
    verb moves data: it is done in one of the process's jobs, never inside a request.
    """

    verb: str
    sources: frozenset[str]
    through: str
    then: str
    failure: str
    refused: tuple[type[errors.CinderliteError], ...] = ()
    doubt: str | None = None
    long: bool = False
    patience: float = RETRY_AFTER


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended: `done`, `failed` (with the error), `postponed` (with the reason) or, if it is long, `begun`.

    One that `waits` found no thread. `row` is the row as this try left it, and None if it was not this one that
    settled it.
    """

    word: str
    error: errors.CinderliteError | None = None
    row: Any = None


class Machine:
    """The lifecycle of one table: its moves, the step behind each verb, and what else settles in the same commit."""

    def __init__(self, model: type[Any], *moves: Move) -> None:
        self.model = model
        self.moves = {move.verb: move for move in moves}
        self._long = [move.verb for move in moves if move.long]
        self._steps: dict[str, Step] = {}
        self._settled: Settled = lambda _session, _row, _intent, _error: None
        unknown = {move.doubt for move in moves if move.doubt} - self.moves.keys()
        if unknown:
            raise ValueError(f"unknown verbs {unknown}")

    def step(self, verb: str) -> Callable[[Step], Step]:
        """Register the idempotent work behind `verb`; what it returns are columns to set when it settles."""
        if verb not in self.moves:
            raise ValueError(f"no move {verb!r}")

        def register(function: Step) -> Step:
            self._steps[verb] = function
            return function

        return register

    def settled(self, function: Settled) -> Settled:
        """Register what else changes in the commit that settles a verb, for example the volume of an attachment."""
        self._settled = function
        return function

    def begin(
        self,
        session: Session,
        row_id: str,
        verb: str,
        lease: float,
        request_id: str,
        *also: ColumnElement[bool],
        sources: frozenset[str] | None = None,
        **arguments: Any,
    ) -> str | None:
        """Take the row for `verb`; the caller's commit is the acceptance. Returns the lease, None if it was lost.

        `also` are further conditions on the row, `sources` statuses that stand in for the move's own, `arguments` go
        into the intent.
        """
        move = self.moves[verb]
        owner = new_owner()
        table = self.model
        taken = session.execute(
            update(table)
            .where(
                table.id == row_id,
                table.status.in_(move.sources if sources is None else sources),
                table.busy == 0,
                *also,
            )
            .values(
                status=move.through,
                previous_status=table.status,
                updated_at=models.utcnow(),
                **_leased(owner, lease),
                **_intent(verb, request_id, arguments),
            )
            .execution_options(synchronize_session=False)
        )
        return owner if taken.rowcount == 1 else None  # type: ignore[attr-defined]

    def interrupt(
        self, session: Session, row_id: str, verb: str, request_id: str, sources: frozenset[str], **arguments: Any
    ) -> bool:
        """Let `verb` take over a row on which a job is at work; whether there was one.

        The job finds its lease lost and leaves off at its next checkpoint; `verb` is begun when it has, when its
        process is dead or its lease has run out, so that both are never at work at a time.
        """
        table = self.model
        taken = session.execute(
            update(table)
            .where(table.id == row_id, table.status.in_(sources), table.busy == 1)
            .values(
                status=self.moves[verb].through,
                previous_status=table.status,
                updated_at=models.utcnow(),
                lease_owner=_TOLD_TO_STOP + table.lease_owner,  # Null stays null: then nobody is at work.
                **_intent(verb, request_id, arguments),
            )
            .execution_options(synchronize_session=False)
        )
        return bool(taken.rowcount == 1)  # type: ignore[attr-defined]

    def start(self, row: models.Working, verb: str, lease: float, request_id: str, **arguments: Any) -> str:
        """Mark a *new* row, not yet in the database, as on its way through `verb`; returns the lease."""
        owner = new_owner()
        row.status = self.moves[verb].through
        for name, value in (_leased(owner, lease) | _intent(verb, request_id, arguments)).items():
            setattr(row, name, value)
        return owner

    def run(self, world: World, begun: str | models.Working, owner: str, **at_hand: Any) -> Outcome:
        """Do what a row's intent names and settle it, if `owner` holds the row's lease; begin it if it is long.

        `begun` is the row's id, or the row itself if it was just made by `start` and committed. `at_hand` is what the
        caller has already and the step can use, beside its arguments; who tries again does not have it.
        """
        row: Any = begun
        if isinstance(begun, str):
            with world.db.read() as session:
                row = session.get(self.model, begun)
        if row is None or row.intent is None or row.lease_owner != owner:
            return Outcome("done")
        lease = world.settings.lease
        if not self.moves[row.intent["verb"]].long:
            # Each of its calls has a time-out, but all together may outlast the lease.
            with world.jobs.holding(lambda: self._renew(world, row.id, owner, lease), lease):
                return self._work(world, row, owner, at_hand)
        if not self._jobs(world).start(
            lambda: self._job(world, row, owner), lambda: self._renew(world, row.id, owner, lease), lease
        ):
            self._release(world, row.id, owner)
            return Outcome("waits")
        return Outcome("begun")

    def _jobs(self, world: World) -> Jobs:
        """Who does what is long."""
        return world.jobs

    def give_up(self, world: World, row_id: str, owner: str, error: errors.CinderliteError) -> None:
        """Settle a verb as failed, before its step was begun, if `owner` holds the row's lease."""
        with world.db.read() as session:
            row = session.get(self.model, row_id)
        if row is not None and row.intent is not None and row.lease_owner == owner:
            self._settle(world, row, owner, {}, error)

    def _job(self, world: World, row: Any, owner: str) -> None:
        try:
            self._work(world, row, owner)
        finally:
            self._release(world, row.id, _TOLD_TO_STOP + owner)
            world.wake.set()  # A thread is free for whatever waits.

    def _renew(self, world: World, row_id: str, owner: str, lease: float) -> bool:
        with world.db.write(repeatable=True) as session:
            held = session.execute(
                update(self.model)
                .where(self.model.id == row_id, self.model.lease_owner == owner)
                .values(lease_until=clock.now() + lease, **self._quietly())
                .execution_options(synchronize_session=False)
            )
        return bool(held.rowcount == 1)  # type: ignore[attr-defined]

    def _release(self, world: World, row_id: str, owner: str) -> None:
        with world.db.write() as session:
            self._give_back(session, row_id, owner)

    def _give_back(self, session: Session, row_id: str, owner: str, due: Any = 0.0) -> None:
        """Give a lease back, if it is held; the row's next try is due at that moment."""
        session.execute(
            update(self.model)
            .where(self.model.id == row_id, self.model.lease_owner == owner)
            .values(lease_owner=None, lease_until=due, **self._quietly())
            .execution_options(synchronize_session=False)
        )

    def _work(self, world: World, row: Any, owner: str, at_hand: Mapping[str, Any] | None = None) -> Outcome:
        row_id: str = row.id
        verb, arguments = row.intent["verb"], {**row.intent, **(at_hand or {})}
        began = time.monotonic()
        self._pass(verb, "begun")
        try:
            changes = dict(self._steps[verb](world, row, arguments) or {})
        except errors.Superseded as error:
            self._pass(verb, "stepped")
            # What is left is for whoever wants it, and at once: a process that ends has held on to its lease until now.
            self._release(world, row_id, owner)
            outcome = Outcome("postponed", error)
        except (errors.Unavailable, errors.DeviceHeld) as error:
            self._pass(verb, "stepped")
            outcome = self._postpone(world, row, owner, error)
        except errors.CinderliteError as error:
            self._pass(verb, "stepped")
            outcome = self._settle(world, row, owner, {}, error)
        else:
            self._pass(verb, "stepped")
            outcome = self._settle(world, row, owner, changes, None)
        self._pass(verb, "settled")
        elapsed = time.monotonic() - began
        metrics.OPERATIONS.labels(f"{self.model.__tablename__}.{verb}", outcome.word).observe(elapsed)
        LOG.log(
            logging.INFO if outcome.word == "done" else logging.WARNING,
            "%s %s: %s %s in %.1f ms (request %s)%s",
            self.model.__name__.lower(), row_id, verb, outcome.word, elapsed * 1000, arguments.get("request_id"),
            _told(outcome.error) if outcome.error else "",
        )  # fmt: skip
        return outcome

    def _pass(self, verb: str, point: str) -> None:
        if failpoints.watch is not None:
            failpoints.watch(f"{self.model.__tablename__}.{verb}:{point}")

    def _settle(
        self, world: World, row: Any, owner: str, changes: dict[str, Any], error: errors.CinderliteError | None
    ) -> Outcome:
        verb = row.intent["verb"]
        move = self.moves[verb]
        followed_by = changes.pop("followed_by", None)
        # If this were lost, the step would be done once more, with the same end; what is begun after it has it on the
        # disk, too. What has failed could succeed then, and nobody would expect that of what he was told.
        with world.db.write(repeatable=error is None) as session:
            # Held: who gives the volume back meanwhile writes previous_status, which must not be read too early.
            current = session.get(self.model, row.id, with_for_update=True)
            if current is not None and current.lease_owner == _TOLD_TO_STOP + owner:
                current.lease_owner, current.lease_until = None, 0.0  # What took over may begin.
            if current is None or current.lease_owner != owner:
                return Outcome("done")  # Somebody else took the work over and settled it.
            status = move.then if error is None else move.failure
            if status == RETURN or (error is not None and isinstance(error, move.refused)):
                status = current.previous_status or GONE
            for name, value in changes.items():
                setattr(current, name, value)
            current.reason = str(error) if error else None
            current.lease_owner, current.lease_until = None, 0.0
            current.intent, current.busy = (followed_by, 1) if followed_by else (None, 0)
            if status == GONE:
                self._remove(session, current)
            else:
                current.status = status
                current.updated_at = models.utcnow()
            self._settled(session, current, row.intent, error)
        if followed_by:
            world.wake.set()
        return Outcome("failed" if error else "done", error, current)

    def _remove(self, session: Session, row: Any) -> None:
        if isinstance(row, models.Volume):  # Its purge is still to come, and snapshots may name it.
            row.status, row.deleted, row.deleted_at = "deleted", True, models.utcnow()
        elif row.busy:  # What follows is still to come, and nobody sees that.
            row.status = "deleted"
        else:
            session.delete(row)

    def _postpone(self, world: World, row: Any, owner: str, error: errors.CinderliteError) -> Outcome:
        intent = dict(row.intent)
        move = self.moves[intent["verb"]]
        if move.doubt:
            intent["verb"] = move.doubt
        tries = intent.get("tries", 0)
        intent["tries"] = tries + 1
        if isinstance(error, errors.StillBusy):
            intent["busy_tries"] = intent.get("busy_tries", 0) + 1
        wait = min(RETRY_AFTER * 2 ** min(tries, 16), move.patience)
        pending = error.pending if isinstance(error, errors.CephTimeout) else None
        kept = pending is not None and not pending.done()
        with world.db.write() as session:
            if not kept:
                self._give_back(session, row.id, _TOLD_TO_STOP + owner)
            later: dict[str, Any] = {} if kept else {"lease_owner": None, "lease_until": clock.now() + wait}
            table = self.model
            session.execute(
                update(table)
                .where(table.id == row.id, table.lease_owner == owner)
                .values(intent=intent, reason=str(error), **later, **self._quietly())
                .execution_options(synchronize_session=False)
            )
        if pending is not None and kept:
            # librbd takes back by name what it could not finish, and that would be the work of whoever tried before.
            lease = world.settings.lease
            world.jobs.hold_until(
                pending,
                lambda: self._renew(world, row.id, owner, lease),
                lease,
                lambda: self._end_doubt(world, row.id, owner, wait),
            )
        return Outcome("postponed", error)

    def _end_doubt(self, world: World, row_id: str, owner: str, wait: float) -> None:
        """Leave a row whose call has ended after all to whoever comes first, in so many seconds."""
        try:
            with world.db.write() as session:
                self._give_back(session, row_id, _TOLD_TO_STOP + owner)
                self._give_back(session, row_id, owner, clock.now() + wait)
        except errors.Unavailable as error:  # Nobody renews it any more, so it lapses.
            LOG.warning("%s %s: its lease cannot be given back: %s", self.model.__name__.lower(), row_id, error)
        world.wake.set()

    def unfinished(self, world: World, limit: int) -> list[str]:
        """Ids of rows whose intent nobody is working on now: free, lapsed, or held by a process that is dead.

        Of what is long no more than this process has threads for, so that it is never in the way of the rest.
        """
        table = self.model
        lapsed = table.lease_until < clock.now()
        is_long = table.intent["verb"].as_string().in_(self._long)
        query = (
            select(table.id, table.lease_owner, lapsed)
            .where(table.busy == 1, or_(lapsed, table.lease_owner.is_not(None)))
            .order_by(table.lease_until)
        )
        with world.db.read() as session:
            rows = list(session.execute((query.where(~is_long) if self._long else query).limit(limit)))
            if self._long and (room := min(limit, self._jobs(world).room)):
                rows += session.execute(query.where(is_long).limit(room))
        return [id_ for id_, owner, free in rows if free or (owner is not None and owner_is_dead(owner))]

    def next_due(self, session: Session, since: float) -> float | None:
        """Seconds until the first has its turn of the rows that wait for another try; no row whose turn was by `since`.

        `since` is a moment of the database's clock. By another one a row that became due just after somebody looked
        could be taken for one that he saw.
        """
        table = self.model
        waiting = table.busy == 1, table.lease_owner.is_(None), table.lease_until >= since
        due: float | None = session.scalar(select(func.min(table.lease_until - clock.now())).where(*waiting))
        return due

    def hasten(self, session: Session, row_id: str | None = None) -> int:
        """Make what waits for its next try due, all of it or one row; the number of rows with work left."""
        table = self.model
        waiting = table.busy == 1, table.lease_owner.is_(None), *([] if row_id is None else [table.id == row_id])
        done = session.execute(
            update(table)
            .where(*waiting)
            .values(lease_until=0.0, **self._quietly())
            .execution_options(synchronize_session=False)
        )
        return int(done.rowcount)  # type: ignore[attr-defined]

    def claim(self, world: World, row_id: str, lease: float) -> str | None:
        """Take over the work on a row that `unfinished` named; None if somebody was quicker."""
        owner = new_owner()
        table = self.model
        with world.db.write() as session:
            present = session.scalar(select(table.lease_owner).where(table.id == row_id))
            free = table.lease_until < clock.now()
            if present is not None and owner_is_dead(present):
                free = or_(free, table.lease_owner == present)
            # One statement looks and takes, or two that both looked would both take.
            taken = session.execute(
                update(table)
                .where(table.id == row_id, table.busy == 1, free)
                .values(**_leased(owner, lease), **self._quietly())
                .execution_options(synchronize_session=False)
            )
        if taken.rowcount != 1:  # type: ignore[attr-defined]
            return None
        if present is not None:
            metrics.TAKEN_OVER.labels(table.__tablename__).inc()
        return owner

    def _quietly(self) -> dict[str, Any]:
        """Further columns for a change of who is at work: it is none to what there is to be known of the row."""
        return {"unwritten": self.model.unwritten} if issubclass(self.model, models.Recorded) else {}


@contextlib.contextmanager
def while_busy(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Have a step tried again for some time while librbd finds an image busy: its lock may be that of a dead client.

    `arguments` are the step's. Raises StillBusy instead of ImageBusy, and that when it has been long enough.
    """
    try:
        yield
    except errors.ImageBusy as error:
        if arguments.get("busy_tries", 0) >= _BUSY_TRIES:
            raise
        raise errors.StillBusy(error.message) from error


def _told(error: errors.CinderliteError) -> str:
    """What a line of the log says of an error: the call in which librbd failed, too, which users are not told."""
    of_ceph = isinstance(error, errors.CephError) and error.__cause__ is not None
    return f": {error} ({error.__cause__})" if of_ceph else f": {error}"


def stop(session: Session, model: type[Any], row_id: str) -> bool:
    """Have a job on a row leave off, if there is one; whether it still is at it. What is left has its next turn."""
    row = session.get(model, row_id, with_for_update=True)
    owner = None if row is None else row.lease_owner
    if row is None or owner is None or row.lease_until < clock.read(session) or owner_is_dead(owner):
        return False
    if not owner.startswith(_TOLD_TO_STOP):
        row.lease_owner = _TOLD_TO_STOP + owner
    return True


def _intent(verb: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"intent": {"verb": verb, "request_id": request_id, **arguments}, "busy": 1, "reason": None}


def _leased(owner: str, lease: float) -> dict[str, Any]:
    return {"lease_owner": owner, "lease_until": clock.now() + lease}


@functools.cache
def _boot_id() -> str:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _process_start(pid: int) -> str | None:
    """When the process began, in clock ticks since boot; None if there is no such process."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]


@functools.cache
def _machine() -> str:
    """This machine and process namespace: only inside it does a process id mean anything."""
    identity = pathlib.Path("/etc/machine-id")
    machine = identity.read_text(encoding="ascii").strip() if identity.exists() else ""
    return f"{socket.gethostname()}:{machine}:{pathlib.Path('/proc/self/ns/pid').stat().st_ino}"


def new_owner() -> str:
    """A lease owner's name: machine, boot, process and a nonce, so that others can see whether it still lives."""
    pid = os.getpid()
    return "/".join((_machine(), _boot_id(), str(pid), _own_start(pid), uuid.uuid4().hex))


@functools.lru_cache(1)
def _own_start(pid: int) -> str:
    """When this process, of that id, began; a fork of it asks anew."""
    return _process_start(pid) or ""


def owner_is_dead(owner: str) -> bool:
    """Whether the process behind a lease certainly does not exist any more; False for those on other machines."""
    machine, boot, pid, start, _nonce = owner.removeprefix(_TOLD_TO_STOP).split("/")
    if machine != _machine():
        return False
    return boot != _boot_id() or _process_start(int(pid)) != start


def shown_owner(owner: str) -> str:
    """Whose lease it is, in words for an operator."""
    machine, _boot, pid, *_ = owner.removeprefix(_TOLD_TO_STOP).split("/")
    words = f"process {pid} on {machine.partition(':')[0]}"
    if owner_is_dead(owner):
        words += ", which is dead"
    return f"{words}, told to stop" if owner.startswith(_TOLD_TO_STOP) else words
