"""Rate limits on requests and on failed attempts, counted in memory for a bounded number of keys.

Addresses and enrolled clients have separate windows, so unauthenticated requests can neither use up the limit of a
client behind the same address nor evict its count.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server.peer_addresses import bucket
from fedhet.federation.server.policy import Policy

FAILURES = frozenset(
    {
        *("E102", "E106", "E107", "E111", "E205", "E208", "E210"),  # guesses
        *("E110", "E113", "E115", "E117", "E119", "E120", "E121", "E303"),  # requests that fedhet never sends
    }
)
"""Refusals that count as failed attempts."""
MAX_KEYS = 10_000
"""Keys in one window, at most; the one with the oldest event is evicted first."""


@dataclass
class Window:
    """At most `most` events per key within `seconds` of its first event (a fixed window)."""

    most: int
    seconds: float
    _seen: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, key: str, now: float) -> None:
        """Raises EnrollError E112 if the key has used up its events."""
        with self._lock:
            begun, count = self._current(key, now)
        if count >= self.most:
            wait = int(begun + self.seconds - now) + 1
            raise EnrollError("E112", f"wait {wait} s", seconds=wait)

    def add(self, key: str, now: float) -> None:
        """Count one event."""
        with self._lock:
            begun, count = self._current(key, now)
            self._seen[key] = begun, count + 1
            self._seen.move_to_end(key)
            if len(self._seen) > MAX_KEYS:
                self._seen.popitem(last=False)

    def take(self, key: str, now: float) -> None:
        """`check`, then `add`."""
        self.check(key, now)
        self.add(key, now)

    def _current(self, key: str, now: float) -> tuple[float, int]:
        """Start of a key's window and the events in it. A clock that was set back starts a new window."""
        begun, count = self._seen.get(key, (now, 0))
        return (begun, count) if 0 <= now - begun < self.seconds else (now, 0)


class Limits:
    """The limits on requests and failures: per unauthenticated address, and per enrolled client."""

    def __init__(self, policy: Policy, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._asked = Window(policy.requests_per_minute, 60.0), Window(policy.requests_per_minute, 60.0)
        self._failed = Window(policy.failures_per_hour, 3600.0), Window(policy.failures_per_hour, 3600.0)

    def ask(self, who: str, client: bool, guarded: bool = True) -> None:
        """Count a request of `who`, a client or an address. Raises EnrollError E112 after too many requests or, with
        `guarded`, too many failures."""
        now = self._ticks()
        self._asked[client].take(who, now)
        if guarded:
            self._failed[client].check(who, now)

    def failed(self, who: str, client: bool, code: str) -> None:
        """Count a refusal if its code is in `FAILURES`."""
        if code in FAILURES:
            self._failed[client].add(who, self._ticks())


class Asker:
    """The sender of one request: an address, and a client once its signature is verified.

    `signs`: the request is signed, so it counts for the address only if the signature is wrong. A client is not limited
    by what others behind its address do.
    """

    def __init__(self, limits: Limits, address: str, *, signs: bool = False, guarded: bool = True) -> None:
        self._limits, self._signs, self._guarded = limits, signs, guarded
        self.address = bucket(address)
        self.client = ""

    def begin(self) -> None:
        """Count an unsigned request. Raises EnrollError E112."""
        if not self._signs:
            self._limits.ask(self.address, False, self._guarded)

    def proven(self, node: str) -> None:
        """Count the request for the client that signed it. Raises EnrollError E112."""
        self.client = node
        self._limits.ask(node, True)

    def refused(self, error: EnrollError) -> EnrollError:
        """Count a refusal, and return the error to answer with."""
        if self._signs and not self.client:
            try:
                self._limits.ask(self.address, False)
            except EnrollError as too_often:
                return too_often
        self._limits.failed(self.client or self.address, bool(self.client), error.code)
        return error


@dataclass
class Slots:
    """A counter of free slots: a request that finds none is refused at once."""

    free: int

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Occupy a slot. Raises EnrollError E112 if none is free."""
        if not self.free:
            raise EnrollError("E112", "too many large requests are in progress")
        self.free -= 1
        try:
            yield
        finally:
            self.free += 1
