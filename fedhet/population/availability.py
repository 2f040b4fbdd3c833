"""When a client is reachable, in integer nanoseconds, and how work stretches over it.

With E(t) the reachable time before t, work w that starts at t and pauses while the client is away ends at the first x
with E(x) = E(t) + w. That makes it monotone and additive by construction: warp(warp(t, a), b) = warp(t, a + b).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache

NS = 1_000_000_000

Windows = tuple[tuple[float, float], ...]
"""Intervals [start, end) in seconds, sorted and disjoint."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """Reachable in [starts[i], ends[i]); repeats every `period` ns, or never if it is 0. `before[i]` sums what lies
    ahead of window i, `total` all of them. Windows that touch are one."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    before: tuple[int, ...]
    total: int
    period: int

    def online(self, at: int) -> bool:
        """Whether `at` lies in a window."""
        phase = at % self.period if self.period else at
        i = bisect_right(self.starts, phase) - 1
        return i >= 0 and phase < self.ends[i]

    def next_online(self, at: int) -> int | None:
        """The first reachable nanosecond from `at` on; None if there is none."""
        lap, phase = divmod(at, self.period) if self.period else (0, at)
        i = bisect_right(self.ends, phase)
        if i < len(self.ends):
            return lap * self.period + max(phase, self.starts[i])
        return (lap + 1) * self.period + self.starts[0] if self.period else None

    def until(self, at: int) -> int | None:
        """The end of the window that holds the reachable `at`, also across the period's end; None if it never ends."""
        lap, phase = divmod(at, self.period) if self.period else (0, at)
        end = self.ends[bisect_right(self.ends, phase)]
        if self.period and end == self.period and self.starts[0] == 0:
            return None if len(self.ends) == 1 else (lap + 1) * self.period + self.ends[0]
        return lap * self.period + end

    def warp(self, at: int, work: int) -> int | None:
        """When `work` ns of reachable time have passed from `at` on; None if they never do. No work takes no time."""
        if work == 0:
            return at
        goal = self._reachable_before(at) + work
        laps, rest = divmod(goal - 1, self.total) if self.period else (0, goal - 1)
        if rest >= self.total:
            return None
        rest += 1  # in (0, total]: work that fills a window ends with it, not with the next one's start
        i = bisect_left(self.before, rest) - 1
        return laps * self.period + self.starts[i] + rest - self.before[i]

    def _reachable_before(self, at: int) -> int:
        lap, phase = divmod(at, self.period) if self.period else (0, at)
        i = bisect_right(self.starts, phase) - 1
        inside = self.before[i] + min(phase, self.ends[i]) - self.starts[i] if i >= 0 else 0
        return lap * self.total + inside


def seconds(at: int) -> float:
    """A nanosecond in seconds: the nearest float, or the next one where the nearest would be too early.

    After three months a float of seconds is coarser than a nanosecond: whoever waited for a window until the nearest
    might come before it opens, and wait again until the same second, for ever.
    """
    second = at / NS
    while round(second * NS) < at:
        second = math.nextafter(second, math.inf)
    return second


@lru_cache(maxsize=4096)
def calendar(windows: Windows, period_s: float | None) -> Calendar | None:
    """The calendar of windows in seconds; None, always reachable, without any."""
    if not windows:
        return None
    joined: list[list[int]] = []
    for start, end in windows:
        begin, stop = round(start * NS), round(end * NS)
        if joined and joined[-1][1] == begin:
            joined[-1][1] = stop
        else:
            joined.append([begin, stop])
    before = [0]
    for begin, stop in joined:
        before.append(before[-1] + stop - begin)
    period = round(period_s * NS) if period_s is not None else 0
    return Calendar(
        tuple(b for b, _ in joined), tuple(s for _, s in joined), tuple(before[:-1]), total=before[-1], period=period
    )


def warp(at_ns: int, work_ns: int, windows: Windows, period_s: float | None) -> int | None:
    """`Calendar.warp` for windows in seconds."""
    known = calendar(windows, period_s)
    return at_ns + work_ns if known is None else known.warp(at_ns, work_ns)
