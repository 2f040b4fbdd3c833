"""Memory shared with forked workers: one anonymous mapping, made before the fork, handed out in slots.

Nothing has a name, so nothing is left behind when a process is killed; pages cost memory only once they are touched.
The parent alone allocates; workers read and write where they are told.
"""

from __future__ import annotations

import mmap
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
NORESERVE = 0x4000  # MAP_NORESERVE on Linux; Python names it only from 3.13 on


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of the arena, in bytes."""

    at: int
    size: int


class Arena:
    """`take` and `give` slots of whole pages. Slots of one size are reused, so touched pages stay few."""

    def __init__(self, size: int, descriptor: int = -1) -> None:
        """`descriptor` is a file to map instead, for processes that are started rather than forked."""
        flags = mmap.MAP_SHARED | NORESERVE | (mmap.MAP_ANONYMOUS if descriptor < 0 else 0)
        self._map = mmap.mmap(descriptor, size, flags=flags)
        self._size, self._top, self._base = size, 0, _address(self._map)
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def take(self, size: int) -> Slot | None:
        """A slot of at least `size` bytes, or None if the arena is full."""
        size = -(-max(size, 1) // PAGE) * PAGE
        if self._free[size]:
            return Slot(self._free[size].pop(), size)
        if self._top + size > self._size:
            return None
        self._top += size
        return Slot(self._top - size, size)

    def give(self, slot: Slot) -> None:
        """Return a slot; its contents may be overwritten from now on."""
        self._free[slot.size].append(slot.at)

    def lend(self, slot: Slot) -> memoryview:
        """A view of a slot, which returns by itself when the view and all that was made of it are gone."""
        holder = np.frombuffer(self._map, np.uint8, slot.size, slot.at)
        weakref.finalize(holder, self.give, slot).atexit = False
        return memoryview(holder)  # type: ignore[arg-type]

    def place(self, data: Any) -> int:
        """Where a buffer's bytes lie in the arena; negative or beyond its end if they do not."""
        return _address(data) - self._base

    def view(self, at: int, size: int) -> memoryview:
        """The bytes of a slot, writable."""
        return memoryview(self._map)[at : at + size]


def _address(data: Any) -> int:
    where: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return where
