"""When a run ends: by its limits, or because it cannot go on."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CONSECUTIVE_FAILURES = 100
"""Failures in a row that end a run in small fleets; in larger ones three times the number of clients."""


MIN_CLIENTS_OF_COMMON_ERROR = 5
"""Different clients that fail by the same client error before any update has arrived: the run ends."""
REPORTED_AFTER_FAULTS = 3
"""Failures in a row after which a client that worked before is reported."""
MAX_REPORTED_CLIENTS = 20
"""Failing clients that a result names per cause."""


NEUTRAL_CODES = frozenset({"unsolicited", "member", "suspended", "quota", "clone", "code"})
"""Rejection codes that are no violation of the sender: late, too fast, copied by another client, of another version of
the code, or counted elsewhere."""


class Diverged(RuntimeError):
    """The combined update is not finite: it is discarded, the last finite model stays."""


class TooManyFailures(RuntimeError):
    """Job after job fails and no update arrives: the run would not end."""


class ScheduleError(RuntimeError):
    """A schedule gave an invalid command."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends: at the first limit reached; None is no limit. Seconds are of the run's clock.

    `target` is an accuracy in (0, 1]: the first evaluation that reaches it ends the run. It may never be reached, so
    one of the other limits must be set too. Raises ValueError for values out of range.
    """

    versions: int | None = None
    seconds: float | None = None
    tasks: int | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None and not 0 < self.target <= 1:
            raise ValueError(f"target={self.target} must be an accuracy above 0 and at most 1")
        if self.versions is None and self.seconds is None and self.tasks is None:
            raise ValueError("a run needs an end: set versions, seconds or tasks")
        for name in ("versions", "seconds", "tasks"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
