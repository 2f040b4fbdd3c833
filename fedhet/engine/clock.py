"""Wall time as a run's clock. Virtual time is the virtual grid's own; nothing else may ask what time it is."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from fedhet.protocols import Clock


@runtime_checkable
class OwnTime(Protocol):
    """A grid with a time of its own."""

    def as_clock(self) -> Clock:
        """Its clock, for a server that lets time pass by `wait` alone."""
        ...


class WallClock:
    """Seconds since construction (or since an earlier run's `offset`), monotone; waiting naps between polls."""

    def __init__(self, poll: float = 0.1, offset: float = 0.0) -> None:
        if not poll > 0:
            raise ValueError(f"poll={poll} seconds must be positive")
        self._poll = poll
        self.start(offset)

    def start(self, at: float) -> None:
        """It is second `at` of the run now."""
        self._start, self._offset = time.monotonic(), at

    def now(self) -> float:
        return self._offset + time.monotonic() - self._start

    def wait(self, until: float | None) -> None:
        nap = self._poll if until is None else min(self._poll, max(0.0, until - self.now()))
        time.sleep(nap)
