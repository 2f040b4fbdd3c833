"""FedBuff, buffered asynchronous aggregation: every `size` updates make one version; no client waits for another.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", arXiv:2106.06639, Algorithm 1:
w <- w + lr * (1/K) * sum_{k in buffer} st(u_k) * delta_k. A client's slot is refilled at once, with the current model.
With size=1 this is the schedule of Xie et al., "Asynchronous Federated Optimization", arXiv:1903.03934.
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
    Woke,
)
from strategies.schedules.waiting import SLACK, AbstractPerClient, at_least, positive


@dataclass
class FedBuff(AbstractPerClient):
    """FedBuff: combine every `size` updates; size=1 is FedAsync's schedule.

    size: K, updates per version. concurrency: clients that train at a time; a free slot goes to a random idle client.
        None: every client has its own slot and gets its next job as soon as it answers.
    max_staleness: updates older than this many versions are dropped as "stale"; None: no limit.
    flush: combine the buffered updates when the run ends, even if fewer than `size`.
    pause_seconds: least time from the dispatch of a failed job to its replacement.

    Raises ValueError for values out of range.
    """

    size: int = 10
    concurrency: int | None = None
    max_staleness: int | None = None
    flush: bool = False
    pause_seconds: float = 1.0

    held: list[JobId] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        at_least("size", self.size, 1)
        at_least("concurrency", self.concurrency, 1)
        at_least("max_staleness", self.max_staleness, 0)
        positive("pause_seconds", self.pause_seconds)

    def at_a_time(self, clients: int) -> int:
        return self.size

    def react(self, event: Event, view: View) -> Iterator[Command]:
        match event:
            case Started() if self.concurrency is None:
                yield from self._assign(self._start_all(view))
                yield from self._schedule_wake(view)
            case Arrived(job):
                if self.max_staleness is not None and view.version - job.version > self.max_staleness:
                    yield Drop((job.id,), "stale")
                else:
                    self.held.append(job.id)
                if len(self.held) >= self.size:
                    yield from self._combine()
                yield from self._refill(job.client, view.now, view)
            case Failed(job):
                yield from self._refill(job.client, job.sent + self.pause_seconds, view)
            case Joined(client):
                yield from self._refill(client, view.now, view)
            case Left(client):
                self.held = [job for job in self.held if job in view.buffer]  # a client's may have been withdrawn
                self.waiting.pop(client, None)
                yield from self._fill(view)
            case Woke() if self.concurrency is None:
                yield from self._assign(self._take_ready(view))
                yield from self._schedule_wake(view)
            case Started() | Woke():
                yield from self._fill(view)
            case Ending() if self.flush and self.held:
                yield from self._combine()

    def _combine(self) -> Iterator[Command]:
        jobs, self.held = tuple(self.held), []
        yield Aggregate(jobs)

    def _assign(self, clients: list[ClientId]) -> Iterator[Command]:
        for client in clients:
            yield Assign(client)

    def _refill(self, client: ClientId, at: float, view: View) -> Iterator[Command]:
        """Refill the slot that `client` had, from second `at` on."""
        if self.concurrency is None:
            if self._ready_or_wait(client, at, view):
                yield Assign(client)
            else:
                yield from self._schedule_wake_for(client, view)
        elif at <= view.now + SLACK:
            yield from self._fill(view)
        else:
            yield from self._set_timer(at, view)

    def _fill(self, view: View) -> Iterator[Command]:
        """Give the free slots to random idle clients; if there are too few, try again when one comes online."""
        if self.concurrency is None:
            return
        if self.alarm is not None and self.alarm <= view.now + SLACK:
            self.alarm = None
        free = self.concurrency - view.busy
        if free <= 0:
            return
        clients = view.idle.sample(free, view.rng("refill"))
        yield from self._assign(clients)
        if len(clients) < free:
            online = view.next_online()
            if online is not None:
                yield from self._set_timer(online, view)
