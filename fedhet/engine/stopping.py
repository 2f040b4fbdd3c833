"""When a run ends: by its limits, or because it cannot go on."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE = 100
"""Jobs that may fail one after the other, in small fleets; three times the number of clients in larger ones."""
FEW = 5
"""Jobs of different clients that may fail by the same error of theirs before anything has arrived."""
PERSISTENT = 3
"""Failures in a row by which a client that has worked before is named."""
NAMED = 20
"""Failing clients that a result names for one cause."""
BLAMELESS = frozenset({"unsolicited", "member", "suspended", "quota", "clone", "code"})
"""Codes that say nothing against the sender: it was late, fast, copied, of another version, or judged elsewhere."""


class Diverged(RuntimeError):
    """The combined update is not finite: the model is lost, the last good one is kept."""


class TooManyFailures(RuntimeError):
    """Job after job fails and nothing arrives: the run would go on like this for ever."""


class ScheduleError(RuntimeError):
    """A schedule gave a command that makes no sense."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends; whichever comes first, None is no limit. Seconds are of the run's clock.

    `target` is an accuracy in (0, 1]: the first evaluation that reaches it ends the run. It may never be reached, so
    it needs one of the others beside it. Raises ValueError for values out of range.
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
