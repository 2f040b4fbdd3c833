"""A federation without tensors: an event simulator in integer nanoseconds that follows the rules of the engine.

Arrivals of an instant come first (by job), then timers, then the dispatch of everything assigned. Every command a
schedule gives is checked as it is carried out, so each simulated run is a test of the contract as well.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedhet.numerics.rng import stream
from fedhet.types import (
    Aggregate,
    Arrived,
    Assign,
    Budget,
    Drop,
    Ending,
    Event,
    Failed,
    Job,
    Joined,
    Left,
    Note,
    Started,
    Stop,
    Wake,
    Woke,
)

SECOND = 1_000_000_000


class Roster(Mapping[int, Any]):
    """Registered clients; the profile is whatever the test wants it to be."""

    def __init__(self, examples: dict[int, int], profiles: Any = None) -> None:
        self.counts, self.profiles = examples, profiles or {}

    def __getitem__(self, client: int) -> Any:
        self.counts[client]
        return self.profiles.get(client)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.counts))

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def total_examples(self) -> int:
        return sum(self.counts.values())

    def examples(self, client: int) -> int:
        return self.counts[client]


@dataclass
class Profiles:
    """Profiles that know when their client is online."""

    world: World

    def get(self, client: int) -> SimpleNamespace:
        return SimpleNamespace(next_online=lambda now: self.world.back(client))


@dataclass
class Seen:
    finished: int = 0
    failed: int = 0
    seconds_per_step: float | None = None


class Idle:
    """Registered, online, not barred, without a job."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __contains__(self, client: object) -> bool:
        w = self.world
        return client in w.roster.counts and client not in w.excluded and client not in w.occupied and w.online(client)

    def __iter__(self) -> Iterator[int]:
        return (c for c in self.world.roster if c in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def sample(self, k: int, rng: np.random.Generator) -> list[int]:
        pool = list(self)
        return sorted(int(c) for c in rng.choice(pool, min(k, len(pool)), replace=False)) if pool and k else []


@dataclass
class World:
    """One run of one schedule. `seconds(job)` is how long a job takes; `fate(job)` a reason to fail, or None."""

    schedule: Any
    clients: int
    seconds: Callable[[Job], float]
    fate: Callable[[Job], str | None] = lambda job: None
    examples: int = 10
    steps: int = 1
    away: Mapping[int, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Client to the intervals [start, end) in which it is offline."""
    script: Sequence[tuple[float, str, int]] = ()
    """(second, "join" or "leave", client)."""
    combine: Callable[[list[Job], World], None] = lambda jobs, world: None
    """Called before the version moves on."""
    absent: frozenset[int] = frozenset()
    """Clients that are barred until they join."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.roster = Roster(dict.fromkeys(range(self.clients), self.examples), Profiles(self))
        self.idle, self.nanos, self.version = Idle(self), 0, 0
        self.occupied: set[int] = set()
        self.excluded: set[int] = set(self.absent)
        self.inflight: dict[int, Job] = {}
        self.buffer: dict[int, Job] = {}
        self.assigned: dict[int, Assign] = {}
        self.seen: dict[int, Seen] = {}
        self.cohort: list[Job] = []
        self.queue: list[tuple[int, int, int, Any]] = []
        self.jobs: list[Job] = []
        self.turns: Counter[int] = Counter()
        self.applied: Counter[int] = Counter()
        self.dropped: dict[int, str] = {}
        self.failures: dict[int, str] = {}
        self.versions: list[tuple[float, list[Job], list[int]]] = []
        """Per version: when, which jobs (sorted by client, job), their staleness."""
        self.notes: list[tuple[float, str, Mapping[str, Any]]] = []
        self.draws = self.sequence = self.events = 0
        self.over = False
        for second, what, client in self.script:
            self._push(second, 2, (what, client))

    # the view

    @property
    def now(self) -> float:
        return self.nanos / SECOND

    @property
    def busy(self) -> int:
        return len(self.occupied)

    def observed(self, client: int) -> Seen:
        return self.seen.get(client, Seen())

    def online(self, client: Any) -> bool:
        return not any(_nanos(a) <= self.nanos < _nanos(b) for a, b in self.away.get(client, ()))

    def back(self, client: int) -> float:
        """The first second from now on at which a client is online."""
        ends = [b for a, b in self.away.get(client, ()) if _nanos(a) <= self.nanos < _nanos(b)]
        return max(ends, default=self.now)

    def next_online(self) -> float | None:
        return min((self.back(c) for c in self.away if not self.online(c)), default=None)

    def rng(self, purpose: str) -> np.random.Generator:
        self.draws += 1
        return stream(self.seed, purpose, self.draws)

    # the engine

    def run(self, seconds: float = 1e9, versions: int | None = None, events: int = 200_000) -> World:
        """To the end of time, of the versions, or until nothing happens any more; then the ending."""
        self.limit = versions
        self._react(Started())
        self._dispatch()
        while self.queue and not self.over and self.queue[0][0] <= _nanos(seconds):
            self.nanos = self.queue[0][0]
            while self.queue and self.queue[0][0] == self.nanos and not self.over:
                self._happen(heapq.heappop(self.queue)[3])
                self.events += 1
                assert self.events < events, f"no end in sight: {events} events by second {self.now}"
            self._dispatch()
        self.over = True
        self.assigned.clear()
        self._react(Ending())
        return self

    def _push(self, second: float | int, rank: int, what: Any, key: int | None = None) -> None:
        self.sequence += 1
        at = second if isinstance(second, int) and rank == 0 else _nanos(second)
        heapq.heappush(self.queue, (max(at, self.nanos), rank, self.sequence if key is None else key, what))

    def _happen(self, what: Any) -> None:
        match what:
            case Job() as job:
                self._land(job)
            case float() as at:
                self._react(Woke(at))
            case ("join", client):
                self.roster.counts.setdefault(client, self.examples)
                self.excluded.discard(client)
                self._react(Joined(client))
            case ("leave", client):
                self.excluded.add(client)
                if self.assigned.pop(client, None):
                    self.occupied.discard(client)
                self._react(Left(client))

    def _land(self, job: Job) -> None:
        del self.inflight[job.id]
        self.occupied.discard(job.client)
        seen = self.seen.setdefault(job.client, Seen())
        reason = self.fate(job)
        if reason is not None:
            seen.failed += 1
            self.failures[job.id] = reason
            self._react(Failed(job, reason))
            return
        taken = self.now - job.sent
        seen.finished += 1
        seen.seconds_per_step = taken / job.budget.steps
        self.buffer[job.id] = job
        self._react(Arrived(job, taken))

    def _react(self, event: Event) -> None:
        for command in self.schedule.react(event, self):
            match command:
                case Assign(client) if not self.over:
                    assert client in self.roster.counts, f"client {client} is not registered"
                    assert client not in self.occupied, f"client {client} has a job already"
                    assert client not in self.excluded, f"client {client} is gone"
                    self.assigned[client] = command
                    self.occupied.add(client)
                case Aggregate(ids):
                    self._aggregate(ids)
                case Drop(ids, reason):
                    assert ids, "an empty drop"
                    for i in ids:
                        del self.buffer[i]
                        self.dropped[i] = reason
                case Wake(at) if not self.over:
                    self._push(at, 1, float(at))
                case Note(kind, data):
                    self.notes.append((self.now, kind, data))
                case Stop():
                    self.over = True

    def _aggregate(self, ids: Sequence[int]) -> None:
        assert ids and len(set(ids)) == len(ids), f"a combination of {ids}"
        jobs = sorted((self.buffer.pop(i) for i in ids), key=lambda j: (j.client, j.id))
        self.cohort = jobs
        self.combine(jobs, self)
        self.applied.update(j.id for j in jobs)
        self.versions.append((self.now, jobs, [self.version - j.version for j in jobs]))
        assert min(self.versions[-1][2]) >= 0
        self.version += 1
        self.cohort = []
        if self.limit is not None and self.version >= self.limit:
            self.over = True

    def _dispatch(self) -> None:
        for client in sorted(self.assigned) if not self.over else ():
            steps = self.assigned[client].steps
            budget = Budget(self.steps if steps is None else steps)
            job = Job(len(self.jobs), client, self.version, self.turns[client], budget, self.now)
            self.turns[client] += 1
            self.jobs.append(job)
            self.inflight[job.id] = job
            self._push(self.nanos + _nanos(self.seconds(job)), 0, job, job.id)
        self.assigned.clear()

    # what tests ask

    def clients_of(self, version: int) -> list[int]:
        """Clients combined into `version` (1 is the first)."""
        return [j.client for j in self.versions[version - 1][1]]

    def check_ledger(self) -> None:
        """Every job is applied once, dropped once, failed once, buffered, or in flight; never two of them."""
        for job in self.jobs:
            places = [
                self.applied[job.id], job.id in self.dropped, job.id in self.failures,
                job.id in self.buffer, job.id in self.inflight,
            ]  # fmt: skip
            assert sum(places) == 1, f"{job} is in {places}"

    def staleness(self) -> list[int]:
        return [u for _, _, ages in self.versions for u in ages]


def _nanos(second: float) -> int:
    return round(second * SECOND)


@pytest.fixture(scope="session")
def world() -> type[World]:
    """The simulator's class: `world(schedule, clients=3, seconds=lambda job: 1.0).run(...)`."""
    return World


@pytest.fixture(scope="session")
def fake_view() -> Callable[..., SimpleNamespace]:
    """A bare view for layers, rules and policies: `fake_view(version=3, examples={0: 10, 1: 30}, ...)`."""

    def make(examples: dict[int, int] | None = None, profiles: Any = None, **fields: Any) -> SimpleNamespace:
        seen = fields.pop("seen", {})
        bases = fields.pop("bases", {})
        return SimpleNamespace(
            **{"now": 0.0, "version": 0, "cohort": (), "inflight": {}, "buffer": {}, "busy": 0, **fields},
            roster=Roster(examples or {0: 1}, profiles),
            observed=lambda client: seen.get(client, Seen()),
            base=bases.__getitem__,
            rng=lambda purpose: stream(0, purpose, 1),
            fednova_norm=lambda job: float(job.budget.steps),
        )

    return make
