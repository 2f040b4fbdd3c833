"""Every registered client: columns of numbers, from which a profile is built when somebody asks for it.

Nothing here costs more with more registered clients, except what looks at all of them by its nature (a table, a sum)
and drawing idle ones where clients come and go or most are busy: one pass over an array.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any

import numpy as np

from fedhet.population.availability import NS, Calendar, calendar, seconds
from fedhet.population.profile import Profile
from fedhet.types import ClientId

DEFAULTS = {f.name: f.default for f in fields(Profile)}
FIELDS = tuple(DEFAULTS)
CACHE = 4096
"""Profiles kept; the oldest is forgotten."""


class Clients(Mapping[ClientId, Profile]):
    """Clients 0..n-1. A column is one value shared by all, or an array (n,) of one value each.

    `note` says for people what is special about the fleet, such as how many of its draws were cut off.
    """

    def __init__(self, n: int, columns: Mapping[str, Any], note: str = "") -> None:
        if n < 1:
            raise ValueError(f"a fleet needs at least one client, got {n}")
        for key, column in columns.items():
            if key not in FIELDS:
                raise ValueError(f"profiles have no field {key!r}; they have {', '.join(FIELDS)}")
            if isinstance(column, (np.ndarray, list)) and len(column) != n:
                raise ValueError(f"column {key} has {len(column)} values for {n} clients")
        self._n, self.columns, self.note = n, dict(columns), note
        self._cache: dict[ClientId, Profile] = {}
        self._check()
        self._calendars, self._calendar_of = self._group_calendars()
        self._always_online = all(c is None for c in self._calendars)

    @classmethod
    def from_columns(cls, n: int, columns: Mapping[str, Any], note: str = "") -> Clients:
        """From shared values and arrays."""
        return cls(n, columns, note)

    @classmethod
    def from_profiles(cls, profiles: Sequence[Profile]) -> Clients:
        """From profiles one by one."""
        columns: dict[str, Any] = {}
        for key in FIELDS:
            column = [getattr(p, key) for p in profiles]
            columns[key] = column[0] if all(v == column[0] for v in column) else column
        return cls(len(profiles), columns)

    def _check(self) -> None:
        """Build the profiles with the extreme values of each array, and one of all that are alike in every list but
        that of names: a bad value shows before anything starts."""
        suspects = {0, self._n - 1}
        for column in self.columns.values():
            if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
                bad = np.flatnonzero(~np.isfinite(column.astype(np.float64)))
                suspects |= {int(column.argmin()), int(column.argmax()), *map(int, bad[:1])}
        lists = [column for key, column in self.columns.items() if isinstance(column, list) and key != "name"]
        first: dict[tuple[Any, ...], ClientId] = {}
        for client, row in enumerate(zip(*lists, strict=True)):
            first.setdefault(row, client)
        suspects |= set(first.values())
        for client in sorted(suspects):
            try:
                self[client]
            except ValueError as error:
                raise type(error)(f"client {client}: {error}") from None

    def _group_calendars(self) -> tuple[list[Calendar | None], np.ndarray | None]:
        """The different calendars, and which of them each client has, int32 (n,); None: all have the only one."""
        windows, periods = self.columns.get("availability", ()), self.columns.get("availability_period_s")
        if not isinstance(windows, list) and not isinstance(periods, (np.ndarray, list)):
            return [calendar(windows, periods)], None
        numbers: dict[tuple[Any, Any], int] = {}
        pairs = zip(_cells(windows, self._n), _cells(periods, self._n), strict=True)
        of = np.fromiter((numbers.setdefault(pair, len(numbers)) for pair in pairs), np.int32, self._n)
        return [calendar(*pair) for pair in numbers], of

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

    def column(self, field: str) -> Any:
        """A field of all clients without building a profile: one value they share, or an array or list (n,)."""
        return self.columns.get(field, DEFAULTS[field])

    def examples(self, client: ClientId) -> int:
        return int(_cell(self.columns.get("num_examples", 0), client))

    @property
    def total_examples(self) -> int:
        column = self.columns.get("num_examples", 0)
        return int(np.sum(column)) if isinstance(column, (np.ndarray, list)) else int(column) * self._n

    @property
    def always_online(self) -> bool:
        """Whether no client has availability windows."""
        return self._always_online

    def with_examples(self, counts: np.ndarray) -> Clients:
        """The same clients with their numbers of training samples, int64 (n,)."""
        return Clients(self._n, {**self.columns, "num_examples": np.asarray(counts)}, self.note)

    def tell(self, client: ClientId, fields: Mapping[str, Any]) -> None:
        """What a client of a live federation says of itself, in place of what was assumed; not its availability.

        Raises KeyError for a client that is not in the roster, ValueError for a value that a profile refuses.
        """
        if "sec_per_step" in fields:  # and not by its operations or its samples
            fields = {"flops_per_s": None, "sec_per_sample": None, **fields}
        before = self[client]
        fields = {name: value for name, value in fields.items() if name not in FIELDS or value != getattr(before, name)}
        known = {**{name: getattr(before, name) for name in FIELDS}, **fields}
        if set(known) != set(FIELDS) or {"availability", "availability_period_s"} & set(fields):
            raise ValueError(f"a client cannot tell {sorted(fields)}")
        self._cache[client] = Profile(**known)
        for name, value in fields.items():
            column = self.column(name)
            one_each = column.tolist() if isinstance(column, np.ndarray) else column
            self.columns[name] = list(one_each) if isinstance(one_each, list) else [one_each] * self._n
            self.columns[name][client] = value

    def online(self, client: ClientId, now: float) -> bool:
        """Whether a client of the roster is reachable at a second, without building its profile."""
        known = self._calendars[0 if self._calendar_of is None else self._calendar_of[client]]
        return known is None or known.online(round(now * NS))

    def online_mask(self, now: float) -> np.ndarray:
        """The same for all clients, bool (n,): one pass."""
        at = round(now * NS)
        states = np.array([c is None or c.online(at) for c in self._calendars])
        return np.full(self._n, states[0]) if self._calendar_of is None else states[self._calendar_of]

    def next_online(self, now: float) -> float | None:
        """The next second at which a client that is offline now comes online; None if there is none.

        Costs grow with the number of different calendars, not of clients.
        """
        if self._always_online:
            return None
        at = round(now * NS)
        away = [c.next_online(at) for c in self._calendars if c is not None and not c.online(at)]
        return min((seconds(t) for t in away if t is not None), default=None)


def _cell(column: Any, client: ClientId) -> Any:
    if isinstance(column, np.ndarray):
        return column[client].item()
    return column[client] if isinstance(column, list) else column


def _cells(column: Any, n: int) -> Iterable[Any]:
    """The cells of a column of `n` clients one after another."""
    if isinstance(column, np.ndarray):
        return list(column.tolist())
    return column if isinstance(column, list) else repeat(column, n)


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
        return self._clients.online(client, self._now())  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[ClientId]:
        """Those idle now, ascending: what happens while they are looked at does not change the list."""
        return iter(self._all().tolist())

    def __len__(self) -> int:
        if self._clients.always_online:
            gone = sum(1 for c in self._barred if c in self._clients and c not in self._busy)
            return len(self._clients) - len(self._busy) - gone
        return len(self._all())

    def sample(self, k: int, rng: np.random.Generator) -> list[ClientId]:
        """Up to `k` distinct idle clients, uniform, ascending.

        Draws and refuses, O(k), where all are online and few are busy; one pass over the registry otherwise.
        """
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
        idle = self._all()
        if len(idle) <= k:
            return [int(c) for c in idle]
        return sorted(int(c) for c in rng.choice(idle, k, replace=False))

    def _all(self) -> np.ndarray:
        """Every idle client, int64, ascending."""
        mask = self._clients.online_mask(self._now())
        mask[[c for group in (self._busy, self._barred) for c in group if c in self._clients]] = False
        return np.flatnonzero(mask)
