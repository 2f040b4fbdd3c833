"""FedFix: combine the updates that have arrived at fixed times, and send the new model to their clients.

Window n closes at (n + 1) * window_seconds. A client that has answered waits for the close; the others continue to
train. With a window as long as the slowest client needs this is synchronous training, with a very short one
asynchronous training.

Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
arXiv:2206.10189. A slow client contributes to few windows. The transform `strategies.staleness.importance` corrects
this: its factor times the weight in the mean over the population is the coefficient d_i of the paper.
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
    Command,
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
from strategies.schedules.waiting import SLACK, AbstractPerClient, positive


@dataclass
class FedFix(AbstractPerClient):
    """FedFix: combine every `window_seconds`; an empty window makes no version.

    Clients that failed, joined or came back online start at the next close as well. flush: combine the buffered updates
    when the run ends inside a window. Raises ValueError for values out of range.
    """

    window_seconds: float = 1.0
    flush: bool = False

    held: list[JobId] = field(init=False, default_factory=list)
    origin: float = field(init=False, default=0.0)
    closing: float | None = field(init=False, default=None)
    """When the present window closes; None while no client is training or will come online."""

    def __post_init__(self) -> None:
        positive("window_seconds", self.window_seconds)

    def react(self, event: Event, view: View) -> Iterator[Command]:
        match event:
            case Started():
                self.origin = view.now
                for client in self._start_all(view):
                    yield Assign(client)
                yield from self._schedule(view)
            case Arrived(job):
                self.held.append(job.id)
                self.waiting[job.client] = view.now
            case Failed(job):
                self.waiting[job.client] = view.now
            case Joined(client):
                self.waiting[client] = view.now
                if self.closing is None:
                    yield from self._schedule(view)
            case Left(client):
                self.held = [job for job in self.held if job in view.buffer]  # a client's may have been withdrawn
                self.waiting.pop(client, None)
            case Woke(at) if self.closing is not None and max(at, view.now) >= self.closing - SLACK:
                yield from self._combine()
                for client in self._take_ready(view):
                    yield Assign(client)
                yield from self._schedule(view)
            case Ending() if self.flush:
                yield from self._combine()

    def _combine(self) -> Iterator[Command]:
        if self.held:
            jobs, self.held = tuple(self.held), []
            yield Aggregate(jobs)

    def _schedule(self, view: View) -> Iterator[Command]:
        """Set the next close; if all clients are offline, the first one at which a client is online again."""
        number = math.floor((view.now - self.origin) / self.window_seconds + SLACK) + 1
        if not view.busy and not self.held and not any(client in view.idle for client in self.waiting):
            online = view.next_online()
            if online is None:
                self.closing = None
                return
            number = max(number, math.ceil((online - self.origin) / self.window_seconds - SLACK))
        self.closing = self.origin + number * self.window_seconds
        yield Wake(self.closing)
