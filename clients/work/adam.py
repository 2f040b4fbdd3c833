"""Local Adam, its moments made anew for every job.

Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 1, on flat buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class Adam:
    """`lr` step size, `batch` samples a step. Raises ValueError for values out of range."""

    lr: float = 0.001
    batch: int = 32
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.eps > 0 and self.batch >= 1):
            raise ValueError(f"lr={self.lr}, eps={self.eps}, batch={self.batch} must be positive")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1={self.beta1}, beta2={self.beta2} must be in [0, 1)")

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        params, grad = model.params, model.grad
        model.module.train()
        first, second = torch.zeros_like(params), torch.zeros_like(params)
        batches = data.batches(self.batch)
        total: Tensor | float = 0.0
        for k in range(1, job.budget.steps + 1):
            total = total + model.gradient(*next(batches))
            first.lerp_(grad, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            size = self.lr / (1 - self.beta1**k)
            below = second.sqrt().div_((1 - self.beta2**k) ** 0.5).add_(self.eps)
            params.addcdiv_(first, below, value=-size)
        return {"loss": float(total) / job.budget.steps, "steps": float(job.budget.steps)}
