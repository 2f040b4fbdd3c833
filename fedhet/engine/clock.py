"""Wall time as a run's clock. Virtual time is in `fedhet.simulation`; no other module reads the time of a run."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from fedhet.protocols import Clock


@runtime_checkable
class OwnTime(Protocol):
    """A grid with its own time, such as virtual time."""

    def as_clock(self) -> Clock:
        """Its clock; time passes only in `wait`."""
        ...


class WallClock:
    """Seconds since construction plus `offset`, monotone; `wait` sleeps at most `poll` seconds. Raises ValueError if
    `poll` is not positive."""

    def __init__(self, poll: float = 0.1, offset: float = 0.0) -> None:
        if not poll > 0:
            raise ValueError(f"poll={poll} seconds must be positive")
        self._poll = poll
        self.start(offset)

    def start(self, at: float) -> None:
        """Set the present time to second `at` of the run."""
        self._start, self._offset = time.monotonic(), at

    def now(self) -> float:
        return self._offset + time.monotonic() - self._start

    def wait(self, until: float | None) -> None:
        seconds = self._poll if until is None else min(self._poll, max(0.0, until - self.now()))
        time.sleep(seconds)
