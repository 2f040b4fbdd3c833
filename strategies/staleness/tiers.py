"""FedAT's weighted sum of tier models, in which slow tiers have the update counts of fast tiers as weights.

    w_m = base + mean of the tier's displacements;   w = sum_m a_m w_m,   a_m = c_{T+1-m} / sum_k c_k

with c_m the number of updates of tier m, fastest tier first, and a_m = 1/T until every tier has reported.
Chai et al., "FedAT: A High-Performance and Communication-Efficient Federated Learning System with Asynchronous Tiers",
arXiv:2010.05958. Use it with the schedule `fedat`: the cohort of version 1 is sorted by (seconds per step, id) and
split into equal tiers; all other clients belong to the last tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.numerics.tree import FlatTree, Schema, add, rounded_like, subtract, weighted_sum, widened
from fedhet.protocols import View
from fedhet.types import Memory, Tree


def tier_weights(counts: list[int]) -> list[float]:
    """a_m for the tiers' numbers of updates, fastest first; they add up to one."""
    if 0 in counts:
        return [1.0 / len(counts)] * len(counts)
    return [c / sum(counts) for c in reversed(counts)]


@dataclass(frozen=True)
class Tiers(AbstractTransform):
    """FedAT: computes the step to the weighted sum of tier models from a tier's mean update.

    tiers: the same number as the schedule's. Raises ValueError if it is below 1.
    """

    tiers: int = 5

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    def __post_init__(self) -> None:
        if self.tiers < 1:
            raise ValueError(f"tiers={self.tiers} must be at least 1, and the same as the schedule's")

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        if "counts" not in memory:
            ranked = sorted(
                {j.client for j in view.cohort}, key=lambda c: (view.observed(c).seconds_per_step or 0.0, c)
            )
            memory["clients"] = torch.tensor(ranked, dtype=torch.int64)
            memory["counts"] = torch.zeros(self.tiers, dtype=torch.int64)
            return delta
        tier = self._tier(view.cohort[0].client, memory["clients"])
        counts = memory["counts"].clone()
        counts[tier] += 1
        now = widened(view.state)
        models = [_read(memory, m, now) for m in range(self.tiers)]
        models[tier] = add(widened(view.base(view.cohort[0].version)), widened(delta))
        if int(memory["counts"].sum()) == 0:  # the other tiers start from the current model
            for m, model in enumerate(models):
                _write(memory, m, model)
        _write(memory, tier, models[tier])
        memory["counts"] = counts
        mixture = weighted_sum(models, tier_weights([int(c) for c in counts]))
        return rounded_like(subtract(mixture, now), delta)

    def _tier(self, client: int, ranked: Tensor) -> int:
        at = (ranked == client).nonzero()
        return self.tiers - 1 if len(at) == 0 else int(at[0]) * self.tiers // len(ranked)


def _read(memory: Memory, tier: int, like: Tree) -> Tree:
    flat = memory.get(f"tier/{tier}")
    if flat is None:
        return like
    return _shaped(flat, like)


def _write(memory: Memory, tier: int, model: Tree) -> None:
    leaves = [model.flat] if isinstance(model, FlatTree) else [leaf.reshape(-1) for leaf in model.values()]
    memory[f"tier/{tier}"] = torch.cat(leaves)


def _shaped(flat: Tensor, like: Tree) -> Tree:
    if isinstance(like, FlatTree):
        return FlatTree(like.schema, flat)
    return dict(FlatTree(Schema.of(like), flat))
