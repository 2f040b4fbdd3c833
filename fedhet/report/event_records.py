"""What a log is folded into: a record per job, combination, group and client. Times are seconds of the run's clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedhet.report.run_reader import Name

SLACK = 1e-9
"""Seconds: as much after the latest second is in time."""


@dataclass(slots=True)
class Job:
    """One job's life; a time is None where it did not get so far. `ended`: it arrived, or was given up."""

    id: int
    client: Name
    version: int
    sent: float
    steps: int = 0
    group: Name | None = None
    latest: float | None = None
    downloaded: float | None = None
    trained: float | None = None
    arrives: float | None = None
    ended: float | None = None
    weight: float = 0.0
    account: str = "unfinished"
    reason: str = ""
    combined: float | None = None
    staleness: int | None = None
    scale: float | None = None
    into: int | None = None

    @property
    def flight(self) -> tuple[float, float, float] | None:
        """When it was downloaded, trained and back, if the record says."""
        if self.downloaded is None or self.trained is None or self.arrives is None:
            return None
        return self.downloaded, self.trained, self.arrives

    @property
    def overdue(self) -> float:
        """Seconds by which it came after its group's latest one; 0 if in time, still out, or without such a group."""
        return 0.0 if self.latest is None or self.ended is None else max(0.0, self.ended - self.latest - SLACK)

    @property
    def lost(self) -> bool:
        """Whether its work is in no version of the model and will never be."""
        return self.account in ("late", "rejected", "failed")


@dataclass(slots=True)
class Combination:
    """One new version of the model, and of how many updates it was made."""

    at: float
    version: int
    updates: int


@dataclass(slots=True)
class Group:
    """Clients that a schedule expects back together."""

    id: Name
    opened: float
    expected: float | None = None
    latest: float | None = None
    members: dict[Name, int] = field(default_factory=dict)

    @property
    def until(self) -> float:
        """The last of its times."""
        return max(self.opened, *(t for t in (self.expected, self.latest) if t is not None), self.opened)


@dataclass(slots=True)
class Client:
    """Totals of one client."""

    id: Name
    tasks: int = 0
    arrived: int = 0
    accepted: int = 0
    lost: int = 0
    seconds: float = 0.0
    steps: int = 0
    weight: float = 0.0
    staleness: int = 0


@dataclass(slots=True)
class Discount:
    """How many updates of one staleness were combined, and the scales they were given."""

    updates: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, scale: float) -> None:
        self.updates += 1
        self.total += scale
        self.low, self.high = min(self.low, scale), max(self.high, scale)
