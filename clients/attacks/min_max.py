"""Min-Max and Min-Sum: as far from the honest mean as the distances among honest updates allow.

sent = mean + gamma * p with the largest gamma such that max_i |sent - x_i| <= max_ij |x_i - x_j| ("max"), or
sum_i |sent - x_i|^2 <= max_i sum_j |x_i - x_j|^2 ("sum"). The bounds are quadratic in gamma, so it is exact.
Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", Network and Distributed System Security Symposium (NDSS) 2021, section IV.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.attacks.collusion import AbstractCollusion, Defence

BOUNDS = ("max", "sum")
DIRECTIONS = ("mean", "std", "sign")


@dataclass(frozen=True, kw_only=True)
class MinMax(AbstractCollusion):
    """Min-Max and Min-Sum: as far from the honest mean as the distances among honest updates allow.

    bound: "max" or "sum". direction: p, the negative of the "mean" (unit length), the "std", or the mean's "sign".
    """

    bound: str = "max"
    direction: str = "std"

    def check(self) -> None:
        if self.bound not in BOUNDS:
            raise ValueError(f"bound={self.bound!r} is not known; use one of {', '.join(BOUNDS)}")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction!r} is not known; use one of {', '.join(DIRECTIONS)}")

    def vector(self, honest: Tensor, count: int, defence: Defence) -> Tensor:
        rows = honest.double()
        mean = rows.mean(0)
        p = -_direction(self.direction, rows, mean)
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        away = mean - rows
        a, b, c = p @ p, away @ p, away.square().sum(1)  # |mean + g p - x_i|^2 = a g^2 + 2 b_i g + c_i
        if float(a) == 0.0:
            return honest.mean(0)
        if self.bound == "sum":
            a, b, c, most = a * len(rows), b.sum()[None], c.sum()[None], apart.sum(1).max()
        else:
            most = apart.max()
        gamma = ((-b + (b.square() - a * (c - most)).clamp(min=0.0).sqrt()) / a).min().clamp(min=0.0)
        return (mean + gamma * p).to(honest.dtype)


def _direction(name: str, rows: Tensor, mean: Tensor) -> Tensor:
    if name == "std":
        return rows.std(0) if len(rows) > 1 else torch.zeros_like(mean)
    return mean.sign() if name == "sign" else mean / torch.linalg.vector_norm(mean).clamp(min=1e-300)
