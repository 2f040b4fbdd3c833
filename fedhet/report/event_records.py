"""Records of an event log: one per job, combination, group and client. Times are seconds of the run's clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedhet.report.run_reader import Name

TOLERANCE_S = 1e-9
"""Tolerance in seconds within which an arrival after the latest time counts as in time."""


@dataclass(slots=True)
class Job:
    """One job; a time is None if the job did not get that far. `ended`: when it arrived or was given up."""

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
        """When download, training and upload ended; None if the log has no timing."""
        if self.downloaded is None or self.trained is None or self.arrives is None:
            return None
        return self.downloaded, self.trained, self.arrives

    @property
    def overdue(self) -> float:
        """Seconds after its group's latest time; 0 if it was in time, has not arrived, or has no such group."""
        return 0.0 if self.latest is None or self.ended is None else max(0.0, self.ended - self.latest - TOLERANCE_S)

    @property
    def lost(self) -> bool:
        """Whether its update will never be part of the model."""
        return self.account in ("late", "rejected", "failed")


@dataclass(slots=True)
class Combination:
    """One new version of the model, and the number of updates in it."""

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
        """The latest of its times."""
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
