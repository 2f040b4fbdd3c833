"""Wall time as a run's clock. Virtual time is the virtual grid's own; nothing else may ask what time it is."""

from __future__ import annotations

import time


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
