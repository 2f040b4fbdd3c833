"""Time windows: combine after a fixed time or when enough updates have arrived, late ones included.

A window closes after `window_seconds` if at least `min_updates` updates have arrived (otherwise it is extended by the
same time), or with the `goal`-th update. Clients get their next job when their update is combined, or at once.
Xie et al., "FederatedScope: A Flexible Federated Learning Platform for Heterogeneity", arXiv:2204.05011
(the "time up" and "goal achieved" conditions, broadcasting after aggregating or after receiving).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fedhet.protocols import View
from fedhet.types import (
    Aggregate,
    Arrived,
    Assign,
    ClientId,
    Command,
    Drop,
    Ending,
    Event,
    Failed,
    JobId,
    Joined,
    Left,
    Started,
    Wake,
    Woke,
)
from strategies.schedules.waiting import SLACK, AbstractPerClient, at_least, positive


@dataclass
class TimeWindow(AbstractPerClient):
    """Combine after `window_seconds`, or as soon as `goal` updates have arrived.

    goal: number of updates that closes a window early; None: time alone. min_updates: with fewer the window is
    extended. max_staleness: older updates are dropped as "stale"; None: no limit. broadcast: "aggregation": a client
    waits until its update is combined; "receipt": it gets the current model at once. flush: combine the buffered
    updates when the run ends. pause_seconds: least time from the dispatch of a failed job to its replacement.

    Raises ValueError for values out of range.
    """

    window_seconds: float = 1.0
    goal: int | None = None
    min_updates: int = 1
    max_staleness: int | None = None
    broadcast: str = "aggregation"
    flush: bool = False
    pause_seconds: float = 1.0

    held: list[JobId] = field(init=False, default_factory=list)
    resting: list[ClientId] = field(init=False, default_factory=list)
    """Clients that wait until their updates are combined."""
    deadline: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        positive("window_seconds", self.window_seconds)
        positive("pause_seconds", self.pause_seconds)
        at_least("goal", self.goal, 1)
        at_least("min_updates", self.min_updates, 1)
        at_least("max_staleness", self.max_staleness, 0)
        if self.goal is not None and self.goal < self.min_updates:
            raise ValueError(f"min_updates={self.min_updates} is above goal={self.goal}; lower it")
        if self.broadcast not in ("aggregation", "receipt"):
            raise ValueError(f"broadcast={self.broadcast!r} is unknown; use 'aggregation' or 'receipt'")

    def at_a_time(self, clients: int) -> int | None:
        return self.goal

    def at_most(self, clients: int) -> int | None:
        return clients if self.broadcast == "aggregation" else None

    def react(self, event: Event, view: View) -> Iterator[Command]:
        match event:
            case Started():
                for client in self._start_all(view):
                    yield Assign(client)
                yield from self._schedule_wake(view)
                yield from self._open(view)
            case Arrived(job) if self.max_staleness is not None and view.version - job.version > self.max_staleness:
                yield Drop((job.id,), "stale")
                yield from self._assign_when_idle(job.client, view.now, view)
            case Arrived(job):
                self.held.append(job.id)
                self.waiting.pop(job.client, None)
                if self.broadcast == "receipt":
                    yield from self._assign_when_idle(job.client, view.now, view)
                else:
                    self.resting.append(job.client)
                if self.goal is not None and len(self.held) >= self.goal:
                    yield from self._combine(view)
                elif self.deadline is None:
                    yield from self._open(view)
            case Failed(job):
                yield from self._assign_when_idle(job.client, job.sent + self.pause_seconds, view)
            case Joined(client) if client not in self.resting:
                yield from self._assign_when_idle(client, view.now, view)
            case Left(client):
                self.held = [job for job in self.held if job in view.buffer]  # a client's may have been withdrawn
                self.waiting.pop(client, None)
                self.resting = [c for c in self.resting if c != client]
            case Woke(at):
                for client in self._take_ready(view):
                    yield Assign(client)
                yield from self._schedule_wake(view)
                if self.deadline is not None and max(at, view.now) >= self.deadline - SLACK:
                    yield from self._time_up(view)
            case Ending() if self.flush and self.held:
                yield Aggregate(tuple(self.held))

    def _time_up(self, view: View) -> Iterator[Command]:
        if len(self.held) >= self.min_updates:
            yield from self._combine(view)
            return
        if not view.busy:  # too few updates, and no client is training: the resting clients continue
            yield from self._release(view)
        if view.busy:
            yield from self._open(view)
        else:
            self.deadline = None  # the next answer opens a window

    def _combine(self, view: View) -> Iterator[Command]:
        jobs, self.held = tuple(self.held), []
        yield Aggregate(jobs)
        yield from self._release(view)
        yield from self._open(view)

    def _release(self, view: View) -> Iterator[Command]:
        clients, self.resting = sorted(self.resting), []
        for client in clients:
            yield from self._assign_when_idle(client, view.now, view)

    def _open(self, view: View) -> Iterator[Command]:
        self.deadline = view.now + self.window_seconds
        yield Wake(self.deadline)

    def _assign_when_idle(self, client: ClientId, at: float, view: View) -> Iterator[Command]:
        if self._ready_or_wait(client, at, view):
            yield Assign(client)
        else:
            yield from self._schedule_wake_for(client, view)
