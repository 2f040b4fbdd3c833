"""Every registered client: columns of numbers, from which a profile is built when somebody asks for it.

Nothing here costs more with more registered clients, except what looks at all of them by its nature (a table, a sum).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from fedhet.profile import Profile
from fedhet.types import ClientId

FIELDS = tuple(f.name for f in fields(Profile))
CACHE = 4096
"""Profiles kept; the oldest is forgotten."""


class Clients(Mapping[ClientId, Profile]):
    """Clients 0..n-1. A column is one value shared by all, or an array (n,) of one value each."""

    def __init__(self, n: int, columns: Mapping[str, Any]) -> None:
        if n < 1:
            raise ValueError(f"a fleet needs at least one client, got {n}")
        for key, column in columns.items():
            if key not in FIELDS:
                raise ValueError(f"profiles have no field {key!r}; they have {', '.join(FIELDS)}")
            if isinstance(column, (np.ndarray, list)) and len(column) != n:
                raise ValueError(f"column {key} has {len(column)} values for {n} clients")
        self._n, self.columns = n, dict(columns)
        self._cache: dict[ClientId, Profile] = {}
        self._check()

    @classmethod
    def from_columns(cls, n: int, columns: Mapping[str, Any]) -> Clients:
        """From shared values and arrays."""
        return cls(n, columns)

    @classmethod
    def from_profiles(cls, profiles: Sequence[Profile]) -> Clients:
        """From profiles one by one."""
        columns: dict[str, Any] = {}
        for key in FIELDS:
            column = [getattr(p, key) for p in profiles]
            columns[key] = column[0] if all(v == column[0] for v in column) else column
        return cls(len(profiles), columns)

    def _check(self) -> None:
        """Build the profiles with the extreme values of each column: a bad number shows before anything starts."""
        suspects = {0, self._n - 1}
        for column in self.columns.values():
            if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
                bad = np.flatnonzero(~np.isfinite(column.astype(np.float64)))
                suspects |= {int(column.argmin()), int(column.argmax()), *map(int, bad[:1])}
            elif isinstance(column, list):
                suspects |= set(range(self._n))
        for client in sorted(suspects):
            try:
                self[client]
            except ValueError as error:
                raise type(error)(f"client {client}: {error}") from None

    def __getitem__(self, client: ClientId) -> Profile:
        found = self._cache.get(client)
        if found is not None:
            return found
        if client not in self:
            raise KeyError(client)
        values = {key: _cell(column, client) for key, column in self.columns.items()}
        if not values.get("name"):
            values["name"] = f"client-{client}"
        profile = Profile(**values)
        if len(self._cache) >= CACHE:
            del self._cache[next(iter(self._cache))]
        self._cache[client] = profile
        return profile

    def __contains__(self, client: object) -> bool:
        return isinstance(client, (int, np.integer)) and 0 <= int(client) < self._n

    def __iter__(self) -> Iterator[ClientId]:
        return iter(range(self._n))

    def __len__(self) -> int:
        return self._n

    def examples(self, client: ClientId) -> int:
        return int(_cell(self.columns.get("num_examples", 0), client))

    @property
    def total_examples(self) -> int:
        column = self.columns.get("num_examples", 0)
        return int(np.sum(column)) if isinstance(column, (np.ndarray, list)) else int(column) * self._n

    @property
    def always_online(self) -> bool:
        """Whether no client has availability windows."""
        column = self.columns.get("availability", ())
        return not any(column) if isinstance(column, list) else not column

    def with_examples(self, counts: np.ndarray) -> Clients:
        """The same clients with their numbers of training samples, int64 (n,)."""
        return Clients(self._n, {**self.columns, "num_examples": np.asarray(counts)})

    def next_online(self, now: float) -> float | None:
        """The next second at which a client that is offline now comes online; None if there is none."""
        if self.always_online:
            return None
        times = [t for p in self.values() if (t := p.next_online(now)) is not None and t > now]
        return min(times, default=None)


def _cell(column: Any, client: ClientId) -> Any:
    if isinstance(column, np.ndarray):
        return column[client].item()
    return column[client] if isinstance(column, list) else column


class IdleClients:
    """A live view: registered, online, not busy and not barred."""

    def __init__(
        self,
        clients: Clients,
        busy: Collection[ClientId],
        now: Callable[[], float],
        barred: Collection[ClientId],
    ) -> None:
        self._clients, self._busy, self._now, self._barred = clients, busy, now, barred

    def __contains__(self, client: object) -> bool:
        if client in self._busy or client in self._barred or client not in self._clients:
            return False
        return self._clients.always_online or self._clients[client].online(self._now())  # type: ignore[index]

    def __iter__(self) -> Iterator[ClientId]:
        return (client for client in self._clients if client in self)

    def __len__(self) -> int:
        if self._clients.always_online and not self._barred:
            return len(self._clients) - len(self._busy)
        return sum(1 for _ in self)

    def sample(self, k: int, rng: np.random.Generator) -> list[ClientId]:
        """Up to `k` distinct idle clients, uniform, ascending. Draws and refuses; one pass only if few are idle."""
        n = len(self._clients)
        if k <= 0:
            return []
        if self._clients.always_online and 2 * (k + len(self._busy) + len(self._barred)) <= n:
            found: set[ClientId] = set()
            while len(found) < k:
                client = int(rng.integers(n))
                if client not in found and client in self:
                    found.add(client)
            return sorted(found)
        idle = list(self)
        if len(idle) <= k:
            return idle
        return sorted(int(c) for c in rng.choice(np.array(idle), k, replace=False))
