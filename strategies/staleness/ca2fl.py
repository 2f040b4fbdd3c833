"""CA2FL: the buffered updates are calibrated by the cached last displacement of every client.

With h_i the last displacement of client i and h their mean over all M clients, a buffer S of K answers gives

    v = h + (1/K) sum_{i in S} (delta_i - h_i),    then h_i = delta_i and h = mean_i h_i.

Wang, Cao, Wu, Chen, Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached Update
Calibration", ICLR 2024 (OpenReview 4aywmeb97I). The rule must be a plain mean, in the paper over the number of updates:
h is the mean of what clients sent and is added after the rule, so a robust rule would not bound it. Displacements are
cached with their scale, so that clipping also holds for the cache. Memory is that of M models. A client that is in the
buffer twice counts with its last answer, and once with its old cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.numerics.tree import FlatTree, Schema, rounded_like, scale, widened
from fedhet.protocols import View
from fedhet.types import Memory, Tree, Update


@dataclass(frozen=True)
class CA2FL(AbstractTransform):
    """CA2FL: calibrates buffered updates by the cached last update of every client.

    recompute_every: versions after which the sum of the caches is computed again, against accumulated rounding errors.
    Raises ValueError if it is below 1.
    """

    recompute_every: int = 100

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates", "mean"})

    def __post_init__(self) -> None:
        if self.recompute_every < 1:
            raise ValueError(f"recompute_every={self.recompute_every} must be at least 1 version")

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        flat, key = _vector(scale(widened(update.delta), update.scale)), f"cache/{update.job.client}"
        old = memory.get(key)
        change = flat if old is None else flat - old
        memory[key] = flat.clone()
        memory["change"] = memory["change"] + change if "change" in memory else change.clone()
        return update if old is None else replace(update, delta=_like(change, update.delta), scale=1.0)

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        change = memory.pop("change")
        total = memory.get("total")
        count = len(view.roster)
        step = delta if total is None else _like(_vector(widened(delta)) + total / count, delta)
        memory["total"] = change if total is None else total + change
        if (view.version + 1) % self.recompute_every == 0:
            caches = [leaf for key, leaf in sorted(memory.items()) if key.startswith("cache/")]
            memory["total"] = torch.stack(caches).sum(0)
        return step


def _vector(tree: Tree) -> Tensor:
    return tree.flat if isinstance(tree, FlatTree) else torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def _like(flat: Tensor, tree: Tree) -> Tree:
    if isinstance(tree, FlatTree):
        return FlatTree(tree.schema, flat.to(tree.flat.dtype))
    return rounded_like(dict(FlatTree(Schema.of(tree), flat)), tree)
