"""Local Adam; its moments start from zero in every job.

Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 1, on flat buffers:
m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; w <- w - lr * m / (1 - b1^k) / (sqrt(v / (1 - b2^k)) + eps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedhet.model.flat_model import Model
from fedhet.numerics.tree import accumulator
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class Adam:
    """Local Adam; its moments start from zero in every job.

    lr: step size of version 0, times lr_decay**version later. batch: samples per step. weight_decay: L2, added to the
    gradient. Raises ValueError for values out of range.
    """

    lr: float = 0.001
    batch: int = 32
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr_decay: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and self.eps > 0 and self.batch >= 1):
            raise ValueError(f"lr={self.lr}, eps={self.eps}, batch={self.batch} must be positive")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1={self.beta1}, beta2={self.beta2} must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay={self.lr_decay} must be in (0, 1]; 1 keeps the step size")

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        count, lr = job.budget.steps, self.lr * self.lr_decay**job.version
        if count < 1:
            raise ValueError(f"job {job.id} asks for {count} steps; local training needs at least 1")
        model.module.train()
        params, grad = model.params, model.grad
        first, second, below = torch.zeros_like(params), torch.zeros_like(params), torch.empty_like(params)
        batches = data.batches(self.batch)
        total = torch.zeros((), dtype=accumulator(params.dtype))
        for k in range(1, count + 1):
            total += model.gradient(*next(batches))
            if self.weight_decay:
                grad.add_(params, alpha=self.weight_decay)
            first.lerp_(grad, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            torch.sqrt(second, out=below)
            below.div_((1 - self.beta2**k) ** 0.5).add_(self.eps)
            params.addcdiv_(first, below, value=-lr / (1 - self.beta1**k))
        return {"loss": float(total) / count, "steps": float(count)}
