"""Sign flipping: climb where training goes down.

sent = -strength * update. Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for
Distributed Learning from Heterogeneous Datasets", arXiv:1811.03761, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clients.attacks.base import AbstractForgery
from fedhet.protocols import Shard
from fedhet.types import Memory


@dataclass(frozen=True, kw_only=True)
class SignFlip(AbstractForgery):
    """The negative of the client's own update, times `strength` > 0 (10 is the usual loud variant)."""

    strength: float = 1.0

    def check(self) -> None:
        if not 0.0 < self.strength < float("inf"):
            raise ValueError(f"strength={self.strength} must be positive")

    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        return -self.strength * update
