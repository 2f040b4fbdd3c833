"""Local SGD: w <- w - lr * grad F_i(w), on mini-batches, for as many steps as the job's budget.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
Algorithm 1, ClientUpdate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clients.work.loop import AbstractLocal
from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class Sgd(AbstractLocal):
    """SGD with optional momentum, weight decay and gradient clipping; momentum starts from zero in every job."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        return self.steps(model, data, job)
