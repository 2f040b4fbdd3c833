"""Backdoor: the model shall classify inputs with a trigger in the corner as one class, and others as before.

The last `size` x `size` pixels of every channel (or the last size^2 features of a flat input) become `value` and the
label `target` in a share of each batch. With boost the update is scaled as well (model replacement).
Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
arXiv:1708.06733; Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", arXiv:1807.00459.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.attacks.base import AbstractPoisoning, poison
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard, Work
from fedhet.types import Job, Memory


@dataclass(frozen=True, kw_only=True)
class Backdoor(AbstractPoisoning):
    """Backdoor: trains on inputs with a trigger that are labelled with the target class, and scales the update.

    target: class of triggered inputs. share: share of a batch with the trigger, in (0, 1]. size: side of the trigger in
    pixels. value: its pixel value. boost: factor on the update. The attack's success is the share of test inputs of
    other classes that the model classifies as `target` after `mark`.
    """

    target: int = 0
    share: float = 0.5
    size: int = 2
    value: float = 1.0
    boost: float = 1.0

    def check(self) -> None:
        if self.target < 0:
            raise ValueError(f"target={self.target} must be a class, from 0")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share} of a batch must be in (0, 1]")
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1 pixel")
        if not (math.isfinite(self.value) and math.isfinite(self.boost)):
            raise ValueError(f"value={self.value} and boost={self.boost} must be finite")

    def mark(self, x: Tensor) -> Tensor:
        """A copy of inputs (n, ..., height, width) or (n, features) with the trigger."""
        marked = x.clone()
        if x.dim() > 2:
            marked[..., -self.size :, -self.size :] = self.value
        else:
            marked[:, -(self.size**2) :] = self.value
        return marked

    def change(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        if self.target >= classes:
            raise ValueError(f"target={self.target}, but the model has {classes} classes")
        count = math.ceil(self.share * len(x))
        labels = y.clone()
        labels[:count] = self.target
        return torch.cat([self.mark(x[:count]), x[count:]]), labels

    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        start = model.params.clone()
        metrics = poison(self, work, model, data, job, memory)
        if self.boost != 1.0:
            with torch.no_grad():
                model.params.copy_(start + self.boost * (model.params - start))
        return metrics
