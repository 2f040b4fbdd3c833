"""Rounds by the clock: combine after a time, or as soon as enough have come, late answers included.

A window closes after `window_seconds` if at least `min_updates` answers are there (otherwise it is extended by the same
time), or with the `goal`-th answer. Clients go on when their answer is combined, or at once.
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
from strategies.schedules.parking import SLACK, AbstractPerClient, at_least, positive


@dataclass
class TimeWindow(AbstractPerClient):
    """Windows that start with a combination and end by time or by number.

    goal: answers that close a window early; None leaves it to the clock. min_updates: fewer extend the window.
    max_staleness: older answers are dropped as "stale"; None keeps all. broadcast: "aggregation" lets a client wait
    until its answer is combined, "receipt" gives it the current model at once. flush: combine the rest at the end.
    pause_seconds: a job that failed is replaced no sooner than this long after its dispatch.

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
    """Clients whose answers are held and who wait for the combination."""
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
                for client in self._enter(view):
                    yield Assign(client)
                yield from self._rouse(view)
                yield from self._open(view)
            case Arrived(job) if self.max_staleness is not None and view.version - job.version > self.max_staleness:
                yield Drop((job.id,), "stale")
                yield from self._employ(job.client, view.now, view)
            case Arrived(job):
                self.held.append(job.id)
                self.waiting.pop(job.client, None)
                if self.broadcast == "receipt":
                    yield from self._employ(job.client, view.now, view)
                else:
                    self.resting.append(job.client)
                if self.goal is not None and len(self.held) >= self.goal:
                    yield from self._combine(view)
                elif self.deadline is None:
                    yield from self._open(view)
            case Failed(job):
                yield from self._employ(job.client, job.sent + self.pause_seconds, view)
            case Joined(client) if client not in self.resting:
                yield from self._employ(client, view.now, view)
            case Left(client):
                self.held = [job for job in self.held if job in view.buffer]  # a client's may have been withdrawn
                self.waiting.pop(client, None)
                self.resting = [c for c in self.resting if c != client]
            case Woke(at):
                for client in self._ready(view):
                    yield Assign(client)
                yield from self._rouse(view)
                if self.deadline is not None and max(at, view.now) >= self.deadline - SLACK:
                    yield from self._time_up(view)
            case Ending() if self.flush and self.held:
                yield Aggregate(tuple(self.held))

    def _time_up(self, view: View) -> Iterator[Command]:
        if len(self.held) >= self.min_updates:
            yield from self._combine(view)
            return
        if not view.busy:  # too few, and nobody works on more: those who wait go on
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
            yield from self._employ(client, view.now, view)

    def _open(self, view: View) -> Iterator[Command]:
        self.deadline = view.now + self.window_seconds
        yield Wake(self.deadline)

    def _employ(self, client: ClientId, at: float, view: View) -> Iterator[Command]:
        if self._free(client, at, view):
            yield Assign(client)
        else:
            yield from self._rouse_one(client, view)
