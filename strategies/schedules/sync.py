"""Synchronous rounds: sample a cohort, wait for its updates, combine them, repeat.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
Algorithm 1. Over-selection with a reporting goal and a deadline follow Bonawitz et al., "Towards Federated Learning
at Scale: System Design", arXiv:1902.01046: ceil(factor * k) clients are asked, the first k answers
close the round, and answers that come after it are dropped as "late".
"""

from __future__ import annotations

import math
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
    Event,
    Failed,
    JobId,
    Joined,
    Left,
    Started,
    Wake,
    Woke,
)
from strategies.schedules.waiting import MIN_WAKE_DELAY, SLACK, at_least, positive


@dataclass
class Sync:
    """Synchronous rounds with a cohort of idle clients.

    per_round: number of updates that closes a round; None: all clients idle when the round opens.
    over_selection: factor >= 1; ceil(over_selection * per_round) clients get a job, so that the round need not wait for
        stragglers.
    deadline_seconds: time after which a round closes with the updates it has, if they are at least `min_updates`, or
        else as soon as there are that many; None: no deadline.
    min_updates: least number of clients to open a round, and of updates to combine.
    pause_seconds: least time from the start of a failed round to the next round.

    Raises ValueError for values out of range.
    """

    per_round: int | None = None
    over_selection: float = 1.0
    deadline_seconds: float | None = None
    min_updates: int = 1
    pause_seconds: float = 1.0

    waiting: set[ClientId] = field(init=False, default_factory=set)
    arrived: list[JobId] = field(init=False, default_factory=list)
    goal: int = field(init=False, default=0)
    """Number of updates that closes the round; 0 while no round is open."""
    opened: float = field(init=False, default=0.0)
    resume: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        at_least("per_round", self.per_round, 1)
        at_least("over_selection", self.over_selection, 1.0)
        at_least("min_updates", self.min_updates, 1)
        positive("pause_seconds", self.pause_seconds)
        if self.deadline_seconds is not None:
            positive("deadline_seconds", self.deadline_seconds)
        if self.per_round is None and self.over_selection != 1.0:
            raise ValueError(f"over_selection={self.over_selection} needs a per_round; without it all clients train")
        if self.per_round is not None and self.per_round < self.min_updates:
            raise ValueError(f"min_updates={self.min_updates} is above per_round={self.per_round}; lower it")

    def check_clients(self, clients: int) -> None:
        if self.min_updates > clients:
            raise ValueError(f"schedule.min_updates={self.min_updates} is above the {clients} clients of the fleet")

    def at_a_time(self, clients: int) -> int:
        return clients if self.per_round is None else min(self.per_round, clients)

    def react(self, event: Event, view: View) -> Iterator[Command]:
        match event:
            case Arrived(job) if job.client in self.waiting and job.sent >= self.opened - SLACK:
                self.waiting.remove(job.client)
                self.arrived.append(job.id)
            case Arrived(job):
                yield Drop((job.id,), "late")
            case Failed(job):
                self.waiting.discard(job.client)
            case Left(client):
                self.arrived = [job for job in self.arrived if job in view.buffer]  # its own may have been withdrawn
                if not any(job.client == client for job in view.inflight.values()):
                    self.waiting.discard(client)  # its job was not yet sent: no further event will follow
            case Started() | Joined() | Woke():
                pass
            case _:
                return
        if self.goal:
            yield from self._close(view)
        if not self.goal:
            yield from self._open(view)

    def _open(self, view: View) -> Iterator[Command]:
        if view.now < self.resume - SLACK:
            yield Wake(self.resume)
            return
        clients = self._pick(view)
        if len(clients) < self.min_updates:
            online = view.next_online()
            if online is not None:
                yield Wake(max(online, view.now + MIN_WAKE_DELAY))
            return  # otherwise the event of a busy or joining client opens the round
        self.waiting = set(clients)
        self.goal = len(clients) if self.per_round is None else min(self.per_round, len(clients))
        self.opened = view.now
        for client in clients:
            yield Assign(client)
        if self.deadline_seconds is not None:
            yield Wake(view.now + self.deadline_seconds)

    def _pick(self, view: View) -> list[ClientId]:
        if self.per_round is None:
            return list(view.idle)
        asked = math.ceil(self.over_selection * self.per_round - SLACK)
        return view.idle.sample(asked, view.rng("cohort"))

    def _close(self, view: View) -> Iterator[Command]:
        count = len(self.arrived)
        overdue = self.deadline_seconds is not None and view.now >= self.opened + self.deadline_seconds - SLACK
        if self.waiting and count < self.goal and not (overdue and count >= self.min_updates):
            return
        jobs = tuple(self.arrived)
        self.waiting, self.arrived, self.goal = set(), [], 0
        if count >= self.min_updates:
            yield Aggregate(jobs)
            return
        self.resume = self.opened + self.pause_seconds
        if jobs:
            yield Drop(jobs, "too few")
