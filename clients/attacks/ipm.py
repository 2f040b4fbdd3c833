"""IPM, inner-product manipulation: send the negative of the honest mean.

sent = -tau * mean; a small tau stays close to the honest updates, a large one reverses a plain average.
Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", arXiv:1903.03936.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clients.attacks.collusion import AbstractCollusion, Defence, damage, strongest


@dataclass(frozen=True, kw_only=True)
class Ipm(AbstractCollusion):
    """Inner-product manipulation (IPM): sends -tau times the honest mean.

    tau: positive factor. optimise: search for the most damaging tau instead.
    """

    tau: float = 2.0
    optimise: bool = False

    def check(self) -> None:
        if not 0.0 < self.tau < float("inf"):
            raise ValueError(f"tau={self.tau} must be positive")

    def vector(self, honest: Tensor, count: int, defence: Defence) -> Tensor:
        mean = honest.mean(0)
        tau = strongest(damage(defence, mean, -mean)) - 1.0 if self.optimise else self.tau
        return -tau * mean
