"""Schedules in which every client has a slot of its own.

A client gets its next job as soon as it is online and free; until then it is *waiting* with the earliest second at
which it may be tried again. One pending alarm serves all of them, so the number of timers stays small.
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
"""Seconds a wake lies ahead at least, so that a timer set for this instant cannot repeat for ever."""


@dataclass
class AbstractPerClient(ABC):
    """State and moves for parking. Costs grow with the number of waiting clients, at wakes only."""

    waiting: dict[ClientId, float] = field(init=False, default_factory=dict)
    """Client to the earliest second it may be given work."""

    alarm: float | None = field(init=False, default=None)
    """The earliest wake asked for and not yet come."""

    @abstractmethod
    def react(self, event: Event, view: View) -> Iterable[Command]:
        """Commands in answer to one event."""

    def _enter(self, view: View) -> list[ClientId]:
        """The start: clients that can work now; all others of the roster are waiting. One pass over the roster."""
        for client in view.roster:
            self.waiting[client] = view.now
        return self._ready(view)

    def _ready(self, view: View) -> list[ClientId]:
        """Take the waiting clients that can work now, in ascending order."""
        if self.alarm is not None and self.alarm <= view.now + SLACK:
            self.alarm = None
        ready = sorted(c for c, at in self.waiting.items() if at <= view.now + SLACK and c in view.idle)
        for client in ready:
            del self.waiting[client]
        return ready

    def _free(self, client: ClientId, at: float, view: View) -> bool:
        """Whether this client can work now; if not it is waiting until second `at` (or until it is online)."""
        self.waiting.pop(client, None)
        if at <= view.now + SLACK and client in view.idle:
            return True
        self.waiting[client] = at
        return False

    def _rouse(self, view: View) -> Iterator[Command]:
        """After clients were waiting: make sure of a wake when the first of them may work. Cost O(waiting)."""
        yield from self._wake(min((_chance(c, at, view) for c, at in self.waiting.items()), default=math.inf), view)

    def _rouse_one(self, client: ClientId, view: View) -> Iterator[Command]:
        """The same after one client was waiting. Cost O(1)."""
        yield from self._wake(_chance(client, self.waiting[client], view), view)

    def _wake(self, at: float, view: View) -> Iterator[Command]:
        at = max(at, view.now + MIN_WAKE_DELAY)
        pending = self.alarm is not None and view.now < self.alarm <= at + SLACK
        if not pending and math.isfinite(at):
            self.alarm = at
            yield Wake(at)


def _chance(client: ClientId, at: float, view: View) -> float:
    """When to look again at a client waiting until `at`; infinity if an event will tell (busy, gone, unknown)."""
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
