"""Label flipping: train on mirrored labels.

y <- (classes - 1) - y, with as many classes as the model has outputs.
Tolpegin, Truex, Gursoy, Liu, "Data Poisoning Attacks Against Federated Learning Systems", arXiv:2007.08432; this map is
the one common in robustness studies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clients.attacks.base import AbstractPoisoning, poison
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard, Work
from fedhet.types import Job, Memory


@dataclass(frozen=True, kw_only=True)
class LabelFlip(AbstractPoisoning):
    """Label flipping: trains with label y replaced by (classes - 1) - y."""

    def check(self) -> None:
        """There are no hyper-parameters to check."""

    def change(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        return x, classes - 1 - y

    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        return poison(self, work, model, data, job, memory)
