"""ALIE ("a little is enough"): shift the honest mean by z standard deviations, within the honest updates' variance.

sent = mean - z * std, coordinate by coordinate, with z = Phi^-1((n - f - s) / (n - f)) and s = floor(n / 2 + 1) - f:
the largest z for which s honest clients are still farther out. optimise=True takes the z that moves the aggregate most.
Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", arXiv:1902.06156,
Algorithm 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from clients.attacks.collusion import AbstractCollusion, Defence, damage, strongest


def quantile(honest: int, count: int) -> float:
    """The published z for these numbers of honest clients and attackers, clipped to the quantiles 1/2 and 0.9999."""
    needed = max(1, (honest + count) // 2 + 1 - count)
    return NormalDist().inv_cdf(min(max((honest - needed) / honest, 0.5), 0.9999))


@dataclass(frozen=True, kw_only=True)
class Alie(AbstractCollusion):
    """ALIE: the honest mean shifted by z standard deviations per coordinate.

    z: number of standard deviations; None: the published quantile. optimise: search for the most damaging z instead.
    """

    z: float | None = None
    optimise: bool = False

    def check(self) -> None:
        if self.z is not None and not abs(self.z) < float("inf"):
            raise ValueError(f"z={self.z} must be finite, or null for the published quantile")
        if self.z is not None and self.optimise:
            raise ValueError(f"z={self.z} is given: optimise=true would not use it")

    def vector(self, honest: Tensor, count: int, defence: Defence) -> Tensor:
        mean = honest.mean(0)
        std = honest.std(0) if len(honest) > 1 else torch.zeros_like(mean)
        if self.optimise:
            return mean - strongest(damage(defence, mean, -std)) * std
        z = quantile(len(honest), count) if self.z is None else self.z
        return mean - z * std
