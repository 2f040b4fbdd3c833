"""Malformed updates: another shape, dtype, name or size than the job expects. The gate rejects all of them.

Local work is honest; the update is changed just before it is sent, after every codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clients.attacks.base import AbstractAttack
from fedhet.bases import AbstractTransform
from fedhet.model.flat_model import Model
from fedhet.numerics.tree import flatten
from fedhet.protocols import Shard, Work
from fedhet.types import Job, Memory, Update

KINDS = ("shape", "dtype", "names", "size")


@dataclass(frozen=True, kw_only=True)
class Malformed(AbstractAttack, AbstractTransform):
    """Sends updates of a wrong shape, dtype, name or size, which the gate has to reject.

    kind: "shape" adds an axis to every tensor, "dtype" halves or doubles the precision, "names" renames them, "size"
    sends every element twice. Raises ValueError for another kind.
    """

    kind: str = "shape"

    def check(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not known; use one of {', '.join(KINDS)}")

    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        return work.run(model, data, job, memory)

    def send(self, update: Update, memory: Memory) -> Update:
        if update.job.client not in self:
            return update
        names = {name: name + "_" if self.kind == "names" else name for name in update.delta}
        return replace(update, delta=flatten({names[n]: self._bent(leaf) for n, leaf in update.delta.items()}))

    def _bent(self, leaf: Tensor) -> Tensor:
        match self.kind:
            case "shape":
                return leaf[None]
            case "dtype":
                return leaf.to(torch.float64 if leaf.dtype == torch.float32 else torch.float32)
            case "size":
                return torch.stack([leaf, leaf])
        return leaf
