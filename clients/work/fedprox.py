"""FedProx: local SGD with a proximal term towards the model the job started from.

Li et al., "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127, equation 2: minimise
F_i(w) + (mu / 2) ||w - w_t||^2, so mu * (w - w_t) is added to every gradient (before momentum, which sees all of it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clients.work.loop import AbstractLocal
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class FedProx(AbstractLocal):
    """FedProx: local SGD on F_i(w) + (mu / 2) ||w - w_t||^2; mu = 0 is plain SGD, bit for bit.

    Raises ValueError for mu below 0.
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mu < math.inf:
            raise ValueError(f"mu={self.mu} must be 0 or more")

    @property
    def pull(self) -> float:
        return self.mu

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        if self.mu == 0:
            return self.steps(model, data, job)
        anchor = model.params.clone()

        def towards(grad: Tensor, params: Tensor) -> None:
            grad.add_(params, alpha=self.mu).add_(anchor, alpha=-self.mu)

        return self.steps(model, data, job, towards)
