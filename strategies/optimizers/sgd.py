"""Server SGD: the combined update times a learning rate, with or without momentum.

    Sgd         step = lr * delta
    Momentum    m <- momentum * m + delta;  step = lr * m

The mean client displacement takes the place of a negative gradient: Reddi et al., "Adaptive Federated Optimization",
arXiv:2003.00295, Algorithm 1. Momentum at the server is FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", arXiv:1909.06335.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.numerics.tree import scale
from fedhet.protocols import View
from fedhet.types import Memory, Tree
from strategies.optimizers.leafwise import leafwise


@dataclass(frozen=True)
class Sgd(AbstractTransform):
    """Server SGD: step = lr * delta; lr=1 is FedAvg's server step.

    It has no state, so it also works where combinations have different shapes. lr: finite, not negative. Raises
    ValueError otherwise.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        check_lr(self.lr)

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        return scale(delta, self.lr)


@dataclass(frozen=True)
class Momentum(AbstractTransform):
    """Heavy-ball momentum at the server (FedAvgM): m <- momentum * m + delta, step = lr * m.

    momentum: in [0, 1). skip_first: a version of one client's first update alone bypasses the momentum, as FedCompass
    with server momentum does for first updates. Raises ValueError for values out of range.
    """

    lr: float = 1.0
    momentum: float = 0.9
    skip_first: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def __post_init__(self) -> None:
        check_lr(self.lr)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum={self.momentum} is not in [0, 1); 0.9 is usual, 0 is plain SGD")

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        if self.skip_first and len(view.cohort) == 1 and view.cohort[0].turn == 0:
            return scale(delta, self.lr)

        def step(name: str, leaf: Tensor) -> Tensor:
            key = f"momentum/{name}"
            memory[key] = memory[key] * self.momentum + leaf if key in memory else leaf.clone()
            return memory[key] * self.lr

        return leafwise(delta, step)


def check_lr(lr: float) -> None:
    """Raise ValueError unless lr is finite and not negative."""
    if not (lr >= 0.0 and math.isfinite(lr)):
        raise ValueError(f"lr={lr} must be a finite number of at least 0; updates are added, so the sign is plus")
