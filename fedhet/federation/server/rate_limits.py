"""How often somebody may ask, and how often fail: counted in memory, a few bytes for each of a bounded number.

Addresses and enrolled clients are counted in windows of their own, so strangers can neither use up what a client behind
the same address may do nor push its count out of the table.
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
        *("E110", "E113", "E115", "E117", "E119", "E120", "E121", "E303"),  # what no device of ours sends
    }
)
"""Refusals that count as failed attempts."""
REMEMBERED = 10_000
"""Entries of one window; the longest silent one is forgotten first."""


@dataclass
class Window:
    """At most `most` events of one key within `seconds`, counted from its first event on."""

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
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def take(self, key: str, now: float) -> None:
        """`check`, then `add`."""
        self.check(key, now)
        self.add(key, now)

    def _current(self, key: str, now: float) -> tuple[float, int]:
        """When the window of a key began, and its events since; a clock that was set back begins a new one."""
        begun, count = self._seen.get(key, (now, 0))
        return (begun, count) if 0 <= now - begun < self.seconds else (now, 0)


class Limits:
    """How often addresses that have not shown who they are may ask and fail, and enrolled clients each by itself."""

    def __init__(self, policy: Policy, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._asked = Window(policy.requests_per_minute, 60.0), Window(policy.requests_per_minute, 60.0)
        self._failed = Window(policy.failures_per_hour, 3600.0), Window(policy.failures_per_hour, 3600.0)

    def ask(self, who: str, client: bool, guarded: bool = True) -> None:
        """Count a request; with `guarded` only of one who has not failed too often. Raises EnrollError E112."""
        now = self._ticks()
        self._asked[client].take(who, now)
        if guarded:
            self._failed[client].check(who, now)

    def failed(self, who: str, client: bool, code: str) -> None:
        """Count a refusal if its code is that of a failure."""
        if code in FAILURES:
            self._failed[client].add(who, self._ticks())


class Asker:
    """Who sent a request: an address, and a client from the moment on at which a signature proves it.

    `signs`: the request is to prove it, so the address is asked only if that fails. A client is never held to what
    others behind its address do.
    """

    def __init__(self, limits: Limits, address: str, *, signs: bool = False, guarded: bool = True) -> None:
        self._limits, self._signs, self._guarded = limits, signs, guarded
        self.address = bucket(address)
        self.client = ""

    def begin(self) -> None:
        """Raises EnrollError E112."""
        if not self._signs:
            self._limits.ask(self.address, False, self._guarded)

    def proven(self, node: str) -> None:
        """The request is this client's. Raises EnrollError E112."""
        self.client = node
        self._limits.ask(node, True)

    def refused(self, error: EnrollError) -> EnrollError:
        """Count a refusal; what is answered."""
        if self._signs and not self.client:
            try:
                self._limits.ask(self.address, False)
            except EnrollError as too_often:
                return too_often
        self._limits.failed(self.client or self.address, bool(self.client), error.code)
        return error


@dataclass
class Places:
    """For so many at a time; who finds none is told so at once."""

    free: int

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Raises EnrollError E112."""
        if not self.free:
            raise EnrollError("E112", "many large requests are under way")
        self.free -= 1
        try:
            yield
        finally:
            self.free += 1
