"""FedProx: local steps are pulled back to the model they started from.

Li et al., "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127, equation 2: minimise
F_i(w) + (mu / 2) ||w - w_t||^2, so mu * (w - w_t) is added to every gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clients.work.loop import AbstractLocal
from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class FedProx(AbstractLocal):
    """`mu` is the strength of the proximal term; 0 is plain SGD, bit for bit."""

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mu >= 0:
            raise ValueError(f"mu={self.mu} must be 0 or more")

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        if self.mu == 0:
            return self.steps(model, data, job)
        anchor = model.params.clone()

        def pull(grad: Tensor, params: Tensor) -> None:
            grad.add_(params, alpha=self.mu).add_(anchor, alpha=-self.mu)

        metrics = self.steps(model, data, job, pull)
        if not self.momentum:  # FedNova's recursion for a proximal step: norm <- (1 - lr mu) norm + 1
            keep = 1 - self.lr * self.mu
            metrics["a_norm"] = sum(keep**k for k in range(job.budget.steps))
        return metrics
