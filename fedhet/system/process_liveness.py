"""Whether a process that owes an answer is still there, and still at work on it.

A pipe says that its other end is gone only when nobody holds that end any more, and what a process started may hold it
longer than the process lives. A process that is stopped, or waits for a lock nobody will release, never says anything.
So whoever waits for an answer looks, every now and then, whether the process has ended, and whether it or anything it
started has used the processor since. No computation goes without, however busy the machine is.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import psutil

LOOK_S = 1.0
"""Seconds without an answer between two looks."""

PATIENCE_S = 300.0
"""Seconds without any processor time after which a process that owes an answer is given up."""

GRACE_S = 5.0
"""Seconds that a process gets to end by itself."""


class Liveness:
    """The processor time of a process and its descendants, and for how long it has not moved."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.beat()

    def beat(self) -> None:
        """An answer came, or a first task is given: count from now."""
        self._used, self._looked, self._still = -1.0, time.monotonic(), 0.0

    def stuck(self) -> bool:
        """Look. Whether nothing was computed for `PATIENCE_S` seconds, as far as this process was there to see it."""
        used, now = _used(self._pid), time.monotonic()
        # of a time in which the whole machine stood still, or this process alone, nothing is known
        self._still = self._still + min(now - self._looked, 2 * LOOK_S) if used == self._used else 0.0
        self._used, self._looked = used, now
        return self._still >= PATIENCE_S


def place() -> str:
    """Where this process's number is valid: equal for two processes that can look at each other."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {numbers.readlink()}" if numbers.is_symlink() else platform.node()


def _used(pid: int) -> float:
    """Seconds of processor time; what cannot be seen any more counts as none."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += sum(times[:4])  # its own, and that of its children which have ended
    except psutil.Error:  # it has just ended, or one of those it started
        return total
    return total
