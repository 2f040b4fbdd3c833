"""Memory of large results, used again once nothing refers to them.

A fresh 100 MB costs more in page faults than sixteen updates of that size cost to be added into it, and a server makes
two such results per version, the combined update and the next model. What one version let go of, the next one fills.
At most `KEPT` blocks wait to be used again: what a combination needs at its peak anyway, no more.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 22
"""Bytes below which the allocator's own memory is as good."""

KEPT = 2
"""Blocks that wait: a combined update and a model."""


class Shelf:
    """Blocks of memory by size. `empty` lends one; it comes back by itself with the last view of it."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def empty(self, size: int) -> Tensor:
        """A 1-D float32 tensor of `size` numbers, whatever is in them."""
        if 4 * size < LEAST:
            return torch.empty(size)
        block = self._take(4 * size)
        holder = np.frombuffer(block, np.uint8)
        weakref.finalize(holder, self._give, block).atexit = False
        return torch.from_numpy(holder.view(np.float32))

    def _take(self, size: int) -> mmap.mmap:
        for block in self._free:
            if len(block) == size:
                self._free.remove(block)
                return block
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a forked worker gets a copy
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _give(self, block: mmap.mmap) -> None:
        self._free.append(block)
        del self._free[:-KEPT]
