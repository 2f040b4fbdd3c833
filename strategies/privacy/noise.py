"""Gaussian noise on client updates, to measure its effect on attacks and accuracy. It gives no privacy guarantee.

    sent = delta + rms * sqrt(mean(delta^2)) * n,   n ~ N(0, 1) per element

It is the defence against label recovery in Wang, Gao, "Tackling Intertwined Data and Device Heterogeneities in
Federated Learning with Unlimited Staleness", arXiv:2309.13536. There is no clipping and no accounting here, so it gives
no differential privacy. The draws follow from the run's seed, so that runs repeat bit for bit, and the server could
subtract them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedhet.bases import AbstractTransform
from fedhet.numerics import tree
from fedhet.numerics.rng import stream
from fedhet.types import Memory, Tree, Update


@dataclass(frozen=True)
class Noise(AbstractTransform):
    """Gaussian noise on client updates, for measurements: its seed is known to the server, so it protects nobody.

    rms: standard deviation, relative to the root mean square of the update. seed: seed of the draws. Raises ValueError
    for a negative or infinite rms.
    """

    rms: float = 1.0
    seed: int = 0

    notice: ClassVar[str] = (
        "the noise on updates follows from the run's seed: it shows what noise would do, and protects nobody"
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.rms < math.inf:
            raise ValueError(f"rms={self.rms} must be 0 or more")

    def send(self, update: Update, memory: Memory) -> Update:
        if self.rms == 0.0:
            return update
        rng = stream(self.seed, "noise", update.job.client, update.job.turn)
        count = sum(leaf.numel() for leaf in update.delta.values())
        size = self.rms * math.sqrt(tree.squared_norm(update.delta) / max(1, count))
        noise = {k: torch.from_numpy(rng.standard_normal(tuple(v.shape))).to(v.dtype) for k, v in update.delta.items()}
        return replace(update, delta=tree.weighted_sum([update.delta, _like(noise, update.delta)], [1.0, size]))


def _like(leaves: dict[str, torch.Tensor], delta: Tree) -> Tree:
    """The leaves in the layout of a delta."""
    return tree.flatten(leaves) if isinstance(delta, tree.FlatTree) else leaves
