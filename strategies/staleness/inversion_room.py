"""Memory that an inversion uses again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]


@dataclass
class Room:
    """Large buffers that are used again: fresh memory costs more than what is computed in it."""

    spare: dict[Shape, list[Tensor]] = field(default_factory=dict)
    passing: dict[tuple[str, Shape], Tensor] = field(default_factory=dict)

    def keep(self, note: dict[str, Any], shape: Sequence[int], like: Tensor) -> Tensor:
        """A buffer with anything in it, until the note is freed."""
        free = self.spare.setdefault(tuple(shape), [])
        buffer = free.pop() if free else like.new_empty(tuple(shape))
        note.setdefault("kept", []).append(buffer)
        return buffer

    def free(self, note: dict[str, Any]) -> None:
        """What was kept with this note will not be read any more."""
        for buffer in note.pop("kept", ()):
            self.spare[tuple(buffer.shape)].append(buffer)

    def scratch(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A buffer with anything in it, until the next one of this name and shape is asked for."""
        key = name, tuple(shape)
        if key not in self.passing:
            self.passing[key] = like.new_empty(tuple(shape))
        return self.passing[key]
