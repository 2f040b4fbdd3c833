"""The step loop all local training shares: gradients of mini-batches on flat buffers, one in-place step after another.

A work differs from plain SGD in what it adds to a gradient; it says so in one function and keeps the loop. Losses are
summed as tensors and read once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.types import Job

Adjust = Callable[[Tensor, Tensor], None]
"""adjust(grad, params): change the gradient in place before the step."""


@dataclass(frozen=True)
class AbstractLocal:
    """Hyper-parameters of local steps: `lr` step size, `batch` samples a step, heavy-ball `momentum`, L2
    `weight_decay`, `clip_norm` on the gradient (None: no clipping). Raises ValueError for values out of range."""

    lr: float = 0.1
    batch: int = 32
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be positive")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1 sample")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be positive, or null for no clipping")

    def steps(self, model: Model, data: Shard, job: Job, adjust: Adjust | None = None) -> dict[str, float]:
        """Run the job's steps. Metrics: mean loss, steps, and a_norm, how much weight the gradients got in the sum.

        a_norm is FedNova's ||a_i||_1 (arXiv:2007.07481): the number of steps for plain SGD, and
        sum_k (1 - momentum^k) / (1 - momentum) with momentum.
        """
        params, grad = model.params, model.grad
        model.module.train()
        batches = data.batches(self.batch)
        velocity = torch.zeros_like(params) if self.momentum else None
        total: Tensor | float = 0.0
        lever, a_norm = 0.0, 0.0
        for _ in range(job.budget.steps):
            x, y = next(batches)
            total = total + model.gradient(x, y)
            if self.weight_decay:
                grad.add_(params, alpha=self.weight_decay)
            if adjust is not None:
                adjust(grad, params)
            if self.clip_norm is not None:
                norm = float(grad.norm())
                if norm > self.clip_norm:
                    grad.mul_(self.clip_norm / norm)
            if velocity is None:
                params.add_(grad, alpha=-self.lr)
            else:
                velocity.mul_(self.momentum).add_(grad)
                params.add_(velocity, alpha=-self.lr)
            lever = self.momentum * lever + 1.0
            a_norm += lever
        return {"loss": float(total) / job.budget.steps, "steps": float(job.budget.steps), "a_norm": a_norm}
