"""Random numbers in place of an update: Gaussian around zero, or uniform in [0, 1), with a common mean.

sent_k ~ N(0, scale^2) or scale * U[0, 1), independent; with relative=True the scale is in units of the root mean square
of the client's own update. The uniform law is the one of Almasi et al., "Flag Aggregator", arXiv:2302.05865, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.attacks.base import AbstractForgery
from fedhet.protocols import Shard
from fedhet.types import Memory

LAWS = ("gaussian", "uniform")


@dataclass(frozen=True, kw_only=True)
class Noise(AbstractForgery):
    """Sends random numbers in place of an update. law: "gaussian" or "uniform"; scale: see the module."""

    law: str = "gaussian"
    scale: float = 1.0
    relative: bool = False

    def check(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"law={self.law!r} is not known; use one of {', '.join(LAWS)}")
        if not 0.0 < self.scale < float("inf"):
            raise ValueError(f"scale={self.scale} must be positive")

    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        rng = data.rng("attack.noise")
        drawn = rng.standard_normal(len(update)) if self.law == "gaussian" else rng.random(len(update))
        unit = float(update.square().mean().sqrt()) if self.relative else 1.0
        return torch.from_numpy(drawn).to(update.dtype) * (self.scale * unit)
