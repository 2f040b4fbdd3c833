"""The books of a federation: who does what, what has come in, and which models somebody still needs.

Whether a dispatched job is in flight, buffered, combined, dropped, failed or rejected is written here and nowhere
else; and it is all that plug-ins may read (`fedhet.protocols.View`). A model is kept exactly while an unfinished or
buffered job started from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedhet.bases import AbstractTransform
from fedhet.engine.aggregator import Aggregator, Flat
from fedhet.engine.background_tasks import AsksServerTasks, InlineExecutor, ServerTasks
from fedhet.engine.method import Method
from fedhet.engine.stopping import FEW, NAMED, PATIENCE, PERSISTENT, Limits, ScheduleError, TooManyFailures
from fedhet.numerics.rng import stream
from fedhet.population.roster import Clients, IdleClients
from fedhet.protocols import Adapters, Idle, Normed, Space
from fedhet.types import Assign, ClientId, Job, JobId, Memory, Tree, Update, Version


@dataclass(slots=True)
class Seen:
    """What the server saw of one client."""

    finished: int = 0
    failed: int = 0
    seconds_per_step: float | None = None
    rank: int = 0
    """Which the client said it goes on with; 0 if it said nothing."""
    faults: int = 0
    """Jobs in a row that failed by the client's own doing, not by its connection; `why` is the last one's reason."""
    why: str = ""


Emit = Callable[[float, str, Mapping[str, Any]], None]
"""emit(t, name, fields): one row of the record."""


@dataclass
class AbstractServerState:
    """The state of one federation. `fedhet.engine.server.Server` says what happens to it."""

    method: Method
    state: Tree
    roster: Clients
    limits: Limits
    seed: int
    emit: Emit
    aggregator: Aggregator = field(default_factory=Flat)
    now: float = 0.0
    version: Version = 0
    over: str = ""
    closing: str = ""
    cohort: Sequence[Job] = ()
    inflight: dict[JobId, Job] = field(default_factory=dict)
    buffer: dict[JobId, Job] = field(default_factory=dict)
    updates: dict[JobId, Update] = field(default_factory=dict)
    bases: dict[Version, Tree] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    turns: dict[ClientId, int] = field(default_factory=dict)
    held: dict[ClientId, Version] = field(default_factory=dict)
    sent_earlier: set[JobId] = field(default_factory=set)
    """Jobs in flight whose client joined again since: an answer does not tell what its device now holds."""
    seen: dict[ClientId, Seen] = field(default_factory=dict)
    excluded: set[ClientId] = field(default_factory=set)
    revoked_jobs: set[JobId] = field(default_factory=set)
    carried: list[JobId] = field(default_factory=list)
    """Updates that were too few for the rule when a schedule combined them: they go into the next combination."""
    stuck: int = 0
    """Combinations in a row that were too small and left no more carried than before."""
    timers: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    draws: int = 0
    jobs: int = 0
    landed: int = 0
    consecutive_failures: int = 0
    opened: float = 0.0
    """The second of the first dispatch."""
    cause: str = ""
    """The error that the last jobs failed by, its numbers left out, and `alike` whose jobs they were."""
    alike: set[ClientId] = field(default_factory=set)
    _assigned: dict[ClientId, Assign] = field(default_factory=dict)
    _busy: set[ClientId] = field(default_factory=set)
    _holders: Counter[Version] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.bases.setdefault(self.version, self.state)
        self._idle = IdleClients(self.roster, self._busy, lambda: self.now, self.excluded)
        self.server_tasks = ServerTasks(InlineExecutor(dict(self.method.transforms)))
        # asked for with every arrival: protocols take their time to say whether somebody keeps them
        self._rank = self.space.rank if isinstance(self.space, Adapters) else 0
        acting = [
            (name, one) for name, one in self.method.transforms if type(one).arrive is not AbstractTransform.arrive
        ]
        self._pondering = [(name, one) for name, one in acting[-1:] if isinstance(one, AsksServerTasks)]

    # What plug-ins may read

    @property
    def space(self) -> Space:
        return self.method.space

    @property
    def idle(self) -> Idle:
        return self._idle

    @property
    def busy(self) -> int:
        return len(self._busy)

    def base(self, version: Version) -> Tree:
        return self.bases[version]

    def observed(self, client: ClientId) -> Seen:
        return self.seen.get(client) or Seen()

    def fednova_norm(self, job: Job) -> float:
        work = self.method.work
        if not isinstance(work, Normed):
            raise TypeError(f"work {type(work).__name__} does not say what its steps add up to")
        return work.fednova_norm(job)

    def rank_of(self, job: Job) -> int:
        """The rank of a job's adapters, 0 if it has none."""
        return job.budget.rank or self._rank if self._rank else 0

    def next_online(self) -> float | None:
        return self.roster.next_online(self.now)

    def rng(self, purpose: str) -> np.random.Generator:
        self.draws += 1
        return stream(self.seed, purpose, self.draws)

    def note(self, kind: str, data: Mapping[str, float | int | str]) -> None:
        self._emit("note", kind=kind, **data)

    # What the host takes over and writes out

    @property
    def absent(self) -> set[ClientId]:
        """Clients of the roster that were never there: they may be given no work and never had any."""
        return {client for client in self.excluded if client not in self.turns and client in self.roster}

    @property
    def undecided(self) -> Mapping[JobId, Job]:
        """Jobs whose updates are in, and neither combined nor dropped: buffered, or with a layer that has a chore."""
        if not self.server_tasks.open:
            return self.buffer
        return {**self.buffer, **{number: chore.update.job for number, chore in self.server_tasks.open.items()}}

    @property
    def taking_part(self) -> int:
        """How many clients are there or were."""
        return len(self.roster) - len(self.absent)

    def adopt(self, inflight: Sequence[Job], buffered: Sequence[Job], updates: Mapping[JobId, Update]) -> None:
        """Take over the jobs of an earlier life of this run (its other fields are set already)."""
        self.inflight = {job.id: job for job in inflight}
        self.buffer = {job.id: job for job in buffered}
        self.updates = {job: self.aggregator.arrived(update) for job, update in updates.items()}
        self._busy.update(job.client for job in inflight)
        prepared = [chore.update.job for chore in self.server_tasks.open.values()]
        self._holders = Counter(job.version for job in [*inflight, *buffered, *prepared])

    def row(self) -> Mapping[str, Any]:
        """The ledger of updates: every dispatched job is in exactly one of these."""
        counts = self.counts
        return {
            "dispatched": counts["dispatched"],
            "accepted": counts["combined"],
            "late": {k[9:]: n for k, n in counts.items() if k.startswith("dropped: ")},
            "rejected": {k[10:]: n for k, n in counts.items() if k.startswith("rejected: ")},
            "failed": {k[8:]: n for k, n in counts.items() if k.startswith("failed: ")},
            "buffered": len(self.buffer) + len(self.server_tasks.open),
            "unfinished": len(self.inflight),
        }

    def failing(self) -> list[str]:
        """Clients whose every job failed by their own doing, or as the last few in a row did: a sentence a cause."""
        alike: dict[str, list[ClientId]] = {}
        for client, seen in sorted(self.seen.items()):
            if seen.faults and (not seen.finished or seen.faults >= PERSISTENT):
                alike.setdefault(_cause(seen.why), []).append(client)
        told = []
        for clients in alike.values():
            first, more = self.seen[clients[0]], len(clients) - NAMED
            who = ", ".join(map(str, clients[:NAMED])) + (f" and {more} more" if more > 0 else "")
            which = "the last" if first.finished else "all"
            jobs = f"{which} {first.faults} jobs of {'it' if len(clients) == 1 else 'the first'} failed, {first.why}"
            told.append(f"client{'s' * (len(clients) > 1)} {who}: nothing arrives, {jobs}")
        return told

    # Entries

    def _emit(self, name: str, **fields: Any) -> None:
        self.emit(self.now, name, fields)

    def _advance(self, now: float) -> None:
        self.now = max(self.now, now)  # a wall clock that jumps back must not reorder what already happened

    def _land(self, job_id: JobId) -> Job:
        """A job leaves the air; its client is free."""
        job = self.inflight.pop(job_id)
        self.sent_earlier.discard(job_id)
        self._busy.discard(job.client)
        self._release(job.version)
        self.landed += 1
        return job

    def _hold(self, version: Version) -> None:
        self._holders[version] += 1

    def _release(self, version: Version) -> None:
        self._holders[version] -= 1
        if self._holders[version] <= 0:
            del self._holders[version]
            if version != self.version:
                del self.bases[version]

    def _standing(self, jobs: Sequence[JobId]) -> tuple[JobId, ...]:
        """Those of these jobs that were not withdrawn."""
        standing = tuple(job for job in jobs if job not in self.revoked_jobs)
        self.revoked_jobs.difference_update(jobs)
        return standing

    def _unbuffer(self, job_id: JobId) -> Job:
        if job_id not in self.buffer:
            raise ScheduleError(f"{type(self.method.schedule).__name__} named job {job_id}, which is not in the buffer")
        del self.updates[job_id]
        return self.buffer.pop(job_id)

    def _check_failure_streak(self, client: ClientId, reason: str, *, own: bool) -> None:
        """Count failures in a row; give up when they outnumber anything a shaky federation explains.

        `own` failures are the client's doing and would come again. If all who were asked first fail by the same one,
        and several did, so will everybody.
        """
        self.consecutive_failures += 1
        seen = self.seen.setdefault(client, Seen())
        if own:
            seen.faults, seen.why = seen.faults + 1, reason
            if seen.faults == PERSISTENT:
                self.note("failing", {"client": client, "jobs": seen.faults, "reason": reason})
        cause = _cause(reason) if own and not self.counts["arrived"] else ""
        self.alike = {*self.alike, client} if cause and cause == self.cause else {client} if cause else set()
        self.cause = cause
        several = (
            cause
            and self.consecutive_failures >= FEW
            and len(self.alike) >= min(FEW, len(self.roster) - len(self.excluded))
        )
        if several and not any(job.sent <= self.opened for job in self.inflight.values()):
            raise TooManyFailures(
                f"{len(self.alike)} clients failed by the same error, and nothing has arrived from anybody: {reason}"
            )
        if self.consecutive_failures >= max(PATIENCE, 3 * min(len(self.roster), 10 * PATIENCE)):
            raise TooManyFailures(f"the last {self.consecutive_failures} jobs all failed; the last one: {reason}")


def _cause(reason: str) -> str:
    """What equal errors of different clients have in common: all but the numbers."""
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)
