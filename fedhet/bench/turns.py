"""Measuring in turns: all systems once, then all again, so that a busy minute hurts all of them alike.

Ratios are taken within a turn and their median is told; seconds are medians too. Memory is the peak of the process
above what it held before the call, the result included; None where the system does not tell (Linux does).
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
    """One system over all turns: seconds of the clock and of processor time (all threads), and bytes at the peak."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    memory: float | None

    @property
    def seconds(self) -> float:
        """The median on the clock."""
        return median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """The median of processor time."""
        return median(self.cpu)

    def times(self, other: Cost) -> float:
        """How many times as long as another system, on the clock: the median over turns."""
        return median(a / b for a, b in zip(self.wall, other.wall, strict=True))

    def cpu_times(self, other: Cost) -> float:
        """The same in processor time."""
        return median(a / b for a, b in zip(self.cpu, other.cpu, strict=True))


def in_turns(systems: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Cost]:
    """Every system once to warm up, where its memory is read, then `repeats` turns. Raises ValueError for no turns."""
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
    """Bytes a call needs at its peak beyond what is held already, its result included."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    except OSError:
        call()
        return None
    held = _status("VmRSS")
    result = call()
    high = _status("VmHWM")
    del result
    return max(0.0, high - held)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(key)).split()[1])
