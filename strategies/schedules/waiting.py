"""Base of schedules in which every client has a slot of its own: the waiting clients and their timer.

A client gets its next job as soon as it is online and free. Until then it is waiting, with the earliest second at
which it may get one. One pending timer serves all waiting clients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fedhet.protocols import View
from fedhet.types import ClientId, Command, Event, Wake

SLACK = 1e-9
"""Seconds: times this close are the same instant."""

MIN_WAKE_DELAY = 1e-6
"""Least delay of a wake, in seconds: a timer for the present instant could repeat for ever."""


@dataclass
class AbstractPerClient(ABC):
    """Base class of schedules with one slot per client. Only a wake costs time proportional to the waiting clients."""

    waiting: dict[ClientId, float] = field(init=False, default_factory=dict)
    """Earliest second at which each waiting client may get a job."""

    alarm: float | None = field(init=False, default=None)
    """The earliest pending wake, in seconds."""

    @abstractmethod
    def react(self, event: Event, view: View) -> Iterable[Command]:
        """Commands in answer to one event."""

    def _start_all(self, view: View) -> list[ClientId]:
        """At the start: make all clients of the roster waiting, and take those that can work now. O(roster)."""
        for client in view.roster:
            self.waiting[client] = view.now
        return self._take_ready(view)

    def _take_ready(self, view: View) -> list[ClientId]:
        """Remove the clients that can work now from the waiting ones, and return them in ascending order."""
        if self.alarm is not None and self.alarm <= view.now + SLACK:
            self.alarm = None
        ready = sorted(c for c, at in self.waiting.items() if at <= view.now + SLACK and c in view.idle)
        for client in ready:
            del self.waiting[client]
        return ready

    def _ready_or_wait(self, client: ClientId, at: float, view: View) -> bool:
        """Whether this client can work now; if not, it becomes waiting until second `at` or until it is online."""
        self.waiting.pop(client, None)
        if at <= view.now + SLACK and client in view.idle:
            return True
        self.waiting[client] = at
        return False

    def _schedule_wake(self, view: View) -> Iterator[Command]:
        """Schedule a wake for when the first waiting client may get a job. O(waiting)."""
        yield from self._set_timer(
            min((_next_attempt(c, at, view) for c, at in self.waiting.items()), default=math.inf), view
        )

    def _schedule_wake_for(self, client: ClientId, view: View) -> Iterator[Command]:
        """Schedule a wake for when this waiting client may get a job. O(1)."""
        yield from self._set_timer(_next_attempt(client, self.waiting[client], view), view)

    def _set_timer(self, at: float, view: View) -> Iterator[Command]:
        at = max(at, view.now + MIN_WAKE_DELAY)
        pending = self.alarm is not None and view.now < self.alarm <= at + SLACK
        if not pending and math.isfinite(at):
            self.alarm = at
            yield Wake(at)


def _next_attempt(client: ClientId, at: float, view: View) -> float:
    """When a client waiting until `at` may get a job; infinity if an event will follow (it is busy or has left)."""
    if at > view.now + SLACK:
        return at
    if client not in view.roster:
        return math.inf
    online = view.roster[client].next_online(view.now)
    return math.inf if online is None or online <= view.now + SLACK else online


def positive(name: str, value: float) -> None:
    """Raise ValueError unless value is a finite number above zero."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} must be a positive, finite number, such as 1.0")


def at_least(name: str, value: float | None, least: float) -> None:
    """Raise ValueError if a given value is below the least one; None passes."""
    if value is not None and not value >= least:
        raise ValueError(f"{name}={value} must be at least {least}; use {least} or more, or leave its default")
