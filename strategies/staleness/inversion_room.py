"""Buffers that an inversion reuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]


@dataclass
class Room:
    """A pool of large buffers: allocating them for every step would take longer than the computation."""

    spare: dict[Shape, list[Tensor]] = field(default_factory=dict)
    passing: dict[tuple[str, Shape], Tensor] = field(default_factory=dict)

    def keep(self, note: dict[str, Any], shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised buffer, valid until the note is freed."""
        free = self.spare.setdefault(tuple(shape), [])
        buffer = free.pop() if free else like.new_empty(tuple(shape))
        note.setdefault("kept", []).append(buffer)
        return buffer

    def free(self, note: dict[str, Any]) -> None:
        """Return the buffers of this note to the pool."""
        for buffer in note.pop("kept", ()):
            self.spare[tuple(buffer.shape)].append(buffer)

    def scratch(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised buffer, valid until the next call with this name and shape."""
        key = name, tuple(shape)
        if key not in self.passing:
            self.passing[key] = like.new_empty(tuple(shape))
        return self.passing[key]
