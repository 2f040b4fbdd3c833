"""Replay: send the client's first update in every later job."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clients.attacks.base import AbstractForgery
from fedhet.protocols import Shard
from fedhet.types import Memory


@dataclass(frozen=True, kw_only=True)
class Replay(AbstractForgery):
    """Replay: sends the client's first update, times `factor`, in every later job."""

    factor: float = 1.0

    def check(self) -> None:
        if not abs(self.factor) < float("inf"):
            raise ValueError(f"factor={self.factor} must be finite")

    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        first = own.setdefault("first", update.clone())
        return self.factor * first
