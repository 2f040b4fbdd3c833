"""Scaling: an update of large norm, which dominates the mean (model replacement when combined with a backdoor).

sent = factor * update; factor = n / server step replaces the model outright.
Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", arXiv:1807.00459, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from clients.attacks.base import AbstractForgery
from fedhet.protocols import Shard
from fedhet.types import Memory


@dataclass(frozen=True, kw_only=True)
class Scaling(AbstractForgery):
    """Sends the client's honest update times `factor`, any finite number."""

    factor: float = 10.0

    def check(self) -> None:
        if not math.isfinite(self.factor):
            raise ValueError(f"factor={self.factor} must be finite")

    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        return self.factor * update
