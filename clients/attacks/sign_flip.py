"""Sign flipping: send the negative of the honest update, so that the loss increases.

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
    """Sends the negative of the client's honest update, times `strength` > 0; 10 is common in the literature."""

    strength: float = 1.0

    def check(self) -> None:
        if not 0.0 < self.strength < float("inf"):
            raise ValueError(f"strength={self.strength} must be positive")

    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        return -self.strength * update
