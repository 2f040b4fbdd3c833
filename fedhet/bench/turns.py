"""Measurement in turns: all systems once, then all again, so that other load on the machine affects all of them alike.

Ratios are taken within a turn, and their median is reported; seconds are medians too. Memory is the increase of the
process's peak during a call, including the result; None on systems other than Linux.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """Measurements of one system: wall-clock and CPU seconds (all threads) per turn, and peak bytes."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    memory: float | None

    @property
    def seconds(self) -> float:
        """Median wall-clock seconds."""
        return median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU seconds."""
        return median(self.cpu)

    def times(self, other: Cost) -> float:
        """Wall-clock time relative to another system's: the median over turns."""
        return median(a / b for a, b in zip(self.wall, other.wall, strict=True))

    def cpu_times(self, other: Cost) -> float:
        """CPU time relative to another system's: the median over turns."""
        return median(a / b for a, b in zip(self.cpu, other.cpu, strict=True))


def in_turns(systems: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Cost]:
    """Run every system once to warm up and measure memory, then in `repeats` turns. Raises ValueError for no turns."""
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    memory = {name: peak(call) for name, call in systems.items()}
    wall: dict[str, list[float]] = {name: [] for name in systems}
    cpu: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repeats):
        for name, call in systems.items():
            at, used = time.perf_counter(), time.process_time()
            result = call()
            wall[name].append(time.perf_counter() - at)
            cpu[name].append(max(time.process_time() - used, 1e-9))
            del result
    return {name: Cost(tuple(wall[name]), tuple(cpu[name]), memory[name]) for name in systems}


def peak(call: Callable[[], Any]) -> float | None:
    """Increase of peak memory during a call, in bytes, including its result; None if the system does not report it."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    except OSError:
        call()
        return None
    resident = _status("VmRSS")
    result = call()
    high = _status("VmHWM")
    del result
    return max(0.0, high - resident)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(key)).split()[1])
