"""The parameter f of robust rules: how many Byzantine updates to tolerate, as a number or as a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from fedhet.engine.aggregator import Shortage
from fedhet.types import ClientId

Tolerance = int | float
"""A number of updates, or a share in [0, 0.5) of the updates of each combination, rounded down."""


def check(f: Tolerance, name: str = "f") -> None:
    """Raises ValueError for what is neither a count nor a share below one half."""
    if isinstance(f, bool) or not isinstance(f, int | float):
        raise ValueError(f"{name}={f!r} is neither a number of updates nor a share of them")
    if (isinstance(f, int) and f < 0) or (isinstance(f, float) and not 0.0 <= f < 0.5):
        raise ValueError(f"{name}={f!r} must be an integer from 0, or a share of the updates in [0, 0.5)")


def count(f: Tolerance, n: int) -> int:
    """The number of Byzantine updates to tolerate among n. A share is rounded down, to 0 for few updates."""
    return f if isinstance(f, int) else math.floor(f * n + 1e-9)


def within(rule: object, f: int, n: int, least: int) -> None:
    """Raises ValueError if n updates are fewer than the `least` a rule needs to tolerate f Byzantine ones."""
    if n < least:
        raise ValueError(_too_few(rule, f, n, least))


class Tolerant:
    """A rule that needs `PER` * f + `MORE` updates to tolerate f Byzantine ones, and one update if f is 0."""

    PER: ClassVar[int] = 2
    MORE: ClassVar[int] = 1
    f: Tolerance

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        """The shortage if these clients are too few for f; see `fedhet.engine.aggregator.Demanding`."""
        n, f = len(clients), count(self.f, len(clients))
        least = self.PER * f + self.MORE if f else 1
        return Shortage("f", self.f, _too_few(self, f, n, least)) if n < least else None


def _too_few(rule: object, f: int, n: int, least: int) -> str:
    return (
        f"{type(rule).__name__} needs {least} updates or more to tolerate f={f} Byzantine ones, but there are {n}: "
        f"lower f, give it as a share (f=0.2), or combine more updates at a time"
    )
