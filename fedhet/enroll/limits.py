"""How often an address may ask, and how often it may fail: sliding windows in memory, bounded in size."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fedhet.enroll.errors import EnrollError

ADDRESSES = 10_000
"""Addresses remembered; the longest silent one is forgotten first."""


@dataclass
class Window:
    """At most `most` events an address within `seconds`. `now` is of a clock that nobody sets."""

    most: int
    seconds: float
    _seen: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, address: str, now: float) -> None:
        """Raises EnrollError E112 if the address has used up its events."""
        with self._lock:
            events = self._recent(address, now)
            if len(events) >= self.most:
                wait = int(events[0] + self.seconds - now) + 1
                raise EnrollError("E112", f"wait {wait} s", seconds=wait)

    def add(self, address: str, now: float) -> None:
        """Count one event."""
        with self._lock:
            self._recent(address, now).append(now)

    def take(self, address: str, now: float) -> None:
        """`check`, then `add`."""
        self.check(address, now)
        self.add(address, now)

    def _recent(self, address: str, now: float) -> deque[float]:
        events = self._seen.setdefault(address, deque(maxlen=self.most))
        self._seen.move_to_end(address)
        while events and events[0] <= now - self.seconds:
            events.popleft()
        if len(self._seen) > ADDRESSES:
            self._seen.popitem(last=False)
        return events
