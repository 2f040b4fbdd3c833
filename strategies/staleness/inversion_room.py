"""Memory that an inversion uses again and again."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Room:
    """Large buffers that are used again: fresh memory costs more than what is computed in it."""

    free: dict[tuple[int, ...], list[Tensor]] = field(default_factory=dict)

    def take(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """A buffer of this shape with anything in it."""
        spare = self.free.get((rows, columns))
        return spare.pop() if spare else like.new_empty(rows, columns)

    def give(self, buffer: Tensor) -> None:
        """It will not be read any more."""
        self.free.setdefault(tuple(buffer.shape), []).append(buffer)
