"""SCAFFOLD: every local step is corrected by the difference of two control variates.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv:1910.06378, Algorithm 1:
y <- y - lr * (g_i(y) - c_i + c), then c_i+ = c_i - c + (x - y) / (K lr) (option II) or c_i+ = g_i(x) (option I).
The space sends c and combines the steps c_i+ - c_i; c_i stays in the client's memory, zero at first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clients.work.loop import AbstractLocal
from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class Scaffold(AbstractLocal):
    """`option` 2 reads c_i+ off the local path, 1 takes a full gradient at x.

    Momentum, clipping and weight decay are refused: (x - y) / (K lr) is then no mean gradient of F_i.
    """

    option: int = 2

    needs: ClassVar[frozenset[str]] = frozenset({"control"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.option not in (1, 2):
            raise ValueError(f"option={self.option}: SCAFFOLD has options 1 and 2")
        for name in ("momentum", "weight_decay", "clip_norm"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: the control variate assumes plain SGD steps; set it to 0"
                )

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        server = model.extras["control"]
        own = memory.get("control", torch.zeros_like(model.params))
        start = model.params.clone()
        fresh = self._full_gradient(model, data) if self.option == 1 else None
        correction = server - own

        def correct(grad: Tensor, params: Tensor) -> None:
            grad.add_(correction)

        metrics = self.steps(model, data, job, correct)
        if fresh is None:
            fresh = (start - model.params).div_(job.budget.steps * self.lr).sub_(correction)
        model.extras["control_step"] = fresh - own
        memory["control"] = fresh
        return metrics

    def _full_gradient(self, model: Model, data: Shard) -> Tensor:
        model.module.train()
        model.gradient(*data.whole())
        return model.grad.clone()
