"""The state of a federation: jobs, buffered updates, what was observed of clients, and the models still needed.

This alone stores whether a dispatched job is in flight, buffered, combined, dropped, failed or rejected; and it is all
that plug-ins may read (`fedhet.protocols.View`). A model is stored exactly while an unfinished or buffered job started
from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedhet.bases import AbstractTransform
from fedhet.engine.aggregator import Aggregator, Flat
from fedhet.engine.background_tasks import AsksServerTasks, InlineExecutor, ServerTasks
from fedhet.engine.failures import ClientHistory, error_cause, failing_clients
from fedhet.engine.method import Method
from fedhet.engine.stopping import (
    MAX_CONSECUTIVE_FAILURES,
    MIN_CLIENTS_OF_COMMON_ERROR,
    REPORTED_AFTER_FAULTS,
    Limits,
    ScheduleError,
    TooManyFailures,
)
from fedhet.numerics.rng import stream
from fedhet.population.roster import Clients, IdleClients
from fedhet.protocols import Adapters, Idle, Normed, Space
from fedhet.types import Assign, ClientId, Job, JobId, Memory, Tree, Update, Version

__all__ = ["AbstractServerState", "ClientHistory", "Emit"]

Emit = Callable[[float, str, Mapping[str, Any]], None]
"""emit(t, name, fields) writes one event to the log; t is the second of the run."""


@dataclass
class AbstractServerState:
    """The state of one federation; `fedhet.engine.server.Server` changes it."""

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
    """The version of the model that each client's device is known to store."""
    sent_earlier: set[JobId] = field(default_factory=set)
    """Jobs in flight whose client joined again since: an answer does not prove what its present device stores."""
    seen: dict[ClientId, ClientHistory] = field(default_factory=dict)
    excluded: set[ClientId] = field(default_factory=set)
    revoked_jobs: set[JobId] = field(default_factory=set)
    carried: list[JobId] = field(default_factory=list)
    """Updates that were too few for the rule when a schedule combined them; the next combination includes them."""
    stuck: int = 0
    """Combinations in a row that were too small and did not increase the number of carried updates."""
    timers: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    draws: int = 0
    jobs: int = 0
    landed: int = 0
    consecutive_failures: int = 0
    opened: float = 0.0
    """The second of the first dispatch."""
    cause: str = ""
    """The error that the last jobs failed by, without its numbers; `alike` are the clients of these jobs."""
    alike: set[ClientId] = field(default_factory=set)
    _assigned: dict[ClientId, Assign] = field(default_factory=dict)
    _busy: set[ClientId] = field(default_factory=set)
    _holders: Counter[Version] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.bases.setdefault(self.version, self.state)
        self._idle = IdleClients(self.roster, self._busy, lambda: self.now, self.excluded)
        self.server_tasks = ServerTasks(InlineExecutor(dict(self.method.transforms)))
        # read with every arrival, and `isinstance` of a protocol is slow
        self._rank = self.space.rank if isinstance(self.space, Adapters) else 0
        acting = [
            (name, one) for name, one in self.method.transforms if type(one).arrive is not AbstractTransform.arrive
        ]
        self._asking = [(name, one) for name, one in acting[-1:] if isinstance(one, AsksServerTasks)]

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

    def observed(self, client: ClientId) -> ClientHistory:
        return self.seen.get(client) or ClientHistory()

    def fednova_norm(self, job: Job) -> float:
        work = self.method.work
        if not isinstance(work, Normed):
            raise TypeError(f"work {type(work).__name__} does not report the sum of its step weights (fednova_norm)")
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

    # What the host restores and saves

    @property
    def absent(self) -> set[ClientId]:
        """Clients of the roster that never took part: they are excluded and never had a job."""
        return {client for client in self.excluded if client not in self.turns and client in self.roster}

    @property
    def undecided(self) -> Mapping[JobId, Job]:
        """Jobs whose updates arrived and are neither combined nor dropped: buffered, or with an open server task."""
        if not self.server_tasks.open:
            return self.buffer
        return {**self.buffer, **{number: task.update.job for number, task in self.server_tasks.open.items()}}

    @property
    def taking_part(self) -> int:
        """Number of clients that take part or did."""
        return len(self.roster) - len(self.absent)

    def adopt(self, inflight: Sequence[Job], buffered: Sequence[Job], updates: Mapping[JobId, Update]) -> None:
        """Restore the jobs of a run that continues (the other fields are set already)."""
        self.inflight = {job.id: job for job in inflight}
        self.buffer = {job.id: job for job in buffered}
        self.updates = {job: self.aggregator.arrived(update) for job, update in updates.items()}
        self._busy.update(job.client for job in inflight)
        prepared = [task.update.job for task in self.server_tasks.open.values()]
        self._holders = Counter(job.version for job in [*inflight, *buffered, *prepared])

    def row(self) -> Mapping[str, Any]:
        """Counts of jobs by outcome: every dispatched job is in exactly one of them."""
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
        """Sentences about failing clients; see `failing_clients`."""
        return failing_clients(self.seen)

    # State changes

    def _emit(self, name: str, **fields: Any) -> None:
        self.emit(self.now, name, fields)

    def _advance(self, now: float) -> None:
        self.now = max(self.now, now)  # a wall clock that jumps back must not reorder what already happened

    def _land(self, job_id: JobId) -> Job:
        """Remove a job from those in flight; its client is idle again."""
        job = self.inflight.pop(job_id)
        self.sent_earlier.discard(job_id)
        self._busy.discard(job.client)
        self._release(job.version)
        self.landed += 1
        return job

    def _hold(self, version: Version) -> None:
        """Count one more job that started from this version, whose model stays stored until `_release`."""
        self._holders[version] += 1

    def _release(self, version: Version) -> None:
        """Count one job less; the model is deleted after the last one, unless it is the current version."""
        self._holders[version] -= 1
        if self._holders[version] <= 0:
            del self._holders[version]
            if version != self.version:
                del self.bases[version]

    def _not_revoked(self, jobs: Sequence[JobId]) -> tuple[JobId, ...]:
        """Those of these jobs that were not revoked; the revoked ones are named for the last time."""
        remaining = tuple(job for job in jobs if job not in self.revoked_jobs)
        self.revoked_jobs.difference_update(jobs)
        return remaining

    def _unbuffer(self, job_id: JobId) -> Job:
        if job_id not in self.buffer:
            raise ScheduleError(f"{type(self.method.schedule).__name__} named job {job_id}, which is not in the buffer")
        del self.updates[job_id]
        return self.buffer.pop(job_id)

    def _check_failure_streak(self, client: ClientId, reason: str, *, own: bool) -> None:
        """Count failures in a row. Raises TooManyFailures if they are more than bad connections explain.

        `own` failures are the client's fault and would repeat. If all clients of the first dispatch fail by the same
        error, and they are several, every client will: this ends the run early.
        """
        self.consecutive_failures += 1
        seen = self.seen.setdefault(client, ClientHistory())
        if own:
            seen.faults, seen.why = seen.faults + 1, reason
            if seen.faults == REPORTED_AFTER_FAULTS:
                self.note("failing", {"client": client, "jobs": seen.faults, "reason": reason})
        cause = error_cause(reason) if own and not self.counts["arrived"] else ""
        self.alike = {*self.alike, client} if cause and cause == self.cause else {client} if cause else set()
        self.cause = cause
        several = (
            cause
            and self.consecutive_failures >= MIN_CLIENTS_OF_COMMON_ERROR
            and len(self.alike) >= min(MIN_CLIENTS_OF_COMMON_ERROR, len(self.roster) - len(self.excluded))
        )
        if several and not any(job.sent <= self.opened for job in self.inflight.values()):
            raise TooManyFailures(
                f"{len(self.alike)} clients failed by the same error, and nothing has arrived from anybody: {reason}"
            )
        limit = max(MAX_CONSECUTIVE_FAILURES, 3 * min(len(self.roster), 10 * MAX_CONSECUTIVE_FAILURES))
        if self.consecutive_failures >= limit:
            raise TooManyFailures(f"the last {self.consecutive_failures} jobs all failed; the last one: {reason}")
