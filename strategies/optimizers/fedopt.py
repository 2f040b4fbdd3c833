"""Adaptive server optimisers: Adagrad, Adam and Yogi on the combined update.

    m <- b1 m + (1 - b1) delta
    Adagrad  v <- v + delta^2
    Adam     v <- b2 v + (1 - b2) delta^2
    Yogi     v <- v - (1 - b2) delta^2 sign(v - delta^2)
    step = lr * m / (sqrt(v) + tau),   m = 0 and v = tau^2 at the start, no bias correction

Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, Algorithm 2. Running statistics of batch
normalisation are part of the update and would be scaled too: prefer models without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.protocols import View
from fedhet.types import Memory, Tree
from strategies.optimizers.leafwise import leafwise
from strategies.optimizers.sgd import check_lr


@dataclass(frozen=True)
class AbstractAdaptive(AbstractTransform, ABC):
    """Adaptive server optimizer: step lr * m / (sqrt(v) + tau); subclasses define the update of v.

    lr: server learning rate. b1: decay of the first moment m, in [0, 1). tau: adaptivity, above 0.
    """

    lr: float = 0.1
    b1: float = 0.9
    tau: float = 1e-3

    needs: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The next second moment from this one and delta^2; same shape."""

    @final
    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        def step(name: str, leaf: Tensor) -> Tensor:
            first, second = f"m/{name}", f"v/{name}"
            m = memory[first] if first in memory else torch.zeros_like(leaf)
            v = memory[second] if second in memory else torch.full_like(leaf, self.tau**2)
            memory[first] = m * self.b1 + leaf * (1.0 - self.b1)
            memory[second] = self.second(v, leaf * leaf)
            return memory[first] / (memory[second].sqrt() + self.tau) * self.lr

        return leafwise(delta, step)


@dataclass(frozen=True)
class Adagrad(AbstractAdaptive):
    """FedAdagrad: v <- v + delta^2."""

    b1: float = 0.0

    def __post_init__(self) -> None:
        check(self.lr, self.tau, b1=self.b1)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True)
class Adam(AbstractAdaptive):
    """FedAdam: v <- b2 v + (1 - b2) delta^2. b2: decay of the second moment, in [0, 1)."""

    b2: float = 0.99

    def __post_init__(self) -> None:
        check(self.lr, self.tau, b1=self.b1, b2=self.b2)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v * self.b2 + square * (1.0 - self.b2)


@dataclass(frozen=True)
class Yogi(AbstractAdaptive):
    """FedYogi: v changes by at most (1 - b2) delta^2 per step, in either direction. b2: in [0, 1)."""

    b2: float = 0.99

    def __post_init__(self) -> None:
        check(self.lr, self.tau, b1=self.b1, b2=self.b2)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - square * torch.sign(v - square) * (1.0 - self.b2)


def check(lr: float, tau: float, **decays: float) -> None:
    """Raise ValueError for a learning rate, floor or decay out of range."""
    check_lr(lr)
    if not tau > 0.0:
        raise ValueError(f"tau={tau} must be above 0, such as 0.001; it bounds the step where v is small")
    for name, value in decays.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value} is not in [0, 1); usual values are 0.9 and 0.99")
