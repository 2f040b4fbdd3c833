"""Constant values: NaN, infinity, 1e30 or zero in all or some coordinates of an otherwise honest update.

NaN and infinity test the gate, which rejects such updates; 1e30 tests the rules; zero models a lossy connection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.attacks.base import AbstractForgery
from fedhet.protocols import Shard
from fedhet.types import Memory


@dataclass(frozen=True, kw_only=True)
class Constant(AbstractForgery):
    """Replaces a `share` of the coordinates (at least one), drawn anew for every job, by `value`."""

    value: float = float("nan")
    share: float = 1.0

    def check(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share} of the coordinates must be in (0, 1]")

    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        count = max(1, round(self.share * len(update)))
        at = data.rng("attack.constant").choice(len(update), count, replace=False)
        update[torch.from_numpy(at)] = self.value
        return update
