"""The optimisation of reconstructed data: gradient steps on images and label logits; the result is the best point.

Adam with free logits by default; "sign" moves images by the sign of their gradient and needs a box (arXiv:2309.13536's
code). With `decay` the step size is divided by ten after 3/8, 5/8 and 7/8 of the iterations. It ends after the given
number of iterations, at a loss of `enough`, or without progress of 1 % within `patience` iterations.
Kingma, Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Evaluate = Callable[[Tensor, Tensor], tuple[float, Tensor, Tensor]]
"""(images, logits) to loss, gradient by images, gradient by logits."""

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Found:
    """Images (n, *input_shape), logits (n, classes), their loss (the lowest), and the loss of every iteration."""

    x: Tensor
    z: Tensor
    loss: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Search:
    """The optimizer of an inversion.

    optimizer: "adam" or "sign". lr: step size for images and logits. decay: reduce the step size, see the module. box:
    smallest and largest value of a pixel. enough: loss at which the search ends. patience: iterations without progress
    after which it ends; None: no limit.
    Raises ValueError for values out of range.
    """

    optimizer: str = "adam"
    lr: float = 0.1
    decay: bool = False
    box: Sequence[float] | None = None
    enough: float = 0.0
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sign"):
            raise ValueError(f"optimizer={self.optimizer!r} is unknown; use 'adam' or 'sign'")
        if not 0.0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be above 0, such as 0.1 of a pixel's deviation")
        if self.box is not None:
            object.__setattr__(self, "box", tuple(float(b) for b in self.box))
            if len(self.box) != 2 or not self.box[0] < self.box[1]:
                raise ValueError(f"box={list(self.box)} must be the smallest and the largest value of a pixel")
        if self.optimizer == "sign" and self.box is None:
            raise ValueError("optimizer='sign' moves every pixel by lr: set box to bound them")
        if not self.enough >= 0.0:
            raise ValueError(f"enough={self.enough} must be at least 0; 0 never ends the search early")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1 iteration, or null for no limit")

    def run(self, evaluate: Evaluate, x: Tensor, z: Tensor, iterations: int) -> Found:
        """Run `iterations` evaluations, the first one at (x, z): the result is never worse than the start.

        Raises ValueError if `iterations` is below 1.
        """
        if iterations < 1:
            raise ValueError(f"{iterations} iterations: a search takes at least 1")
        x, z = self._boxed(x.clone()), z.clone()
        best, losses, mark = (math.inf, x, z), list[float](), (math.inf, 0)
        first = [torch.zeros_like(x), torch.zeros_like(z)]
        second = [torch.zeros_like(x), torch.zeros_like(z)]
        for k in range(iterations):
            loss, by_x, by_z = evaluate(x, z)
            losses.append(loss)
            if loss < best[0]:
                best = (loss, x.clone(), z.clone())
            if best[0] < 0.99 * mark[0]:
                mark = (best[0], k)
            if best[0] <= self.enough or (self.patience is not None and k - mark[1] >= self.patience):
                break
            lr = self.lr * self._factor(k / iterations)
            self._adam(z, by_z, first[1], second[1], k + 1, lr)
            if self.optimizer == "sign":
                x.sub_(by_x.sign(), alpha=lr)
            else:
                self._adam(x, by_x, first[0], second[0], k + 1, lr)
            x = self._boxed(x)
        if not math.isfinite(best[0]):
            best = (math.inf, x, z)
        return Found(best[1], best[2], best[0], tuple(losses))

    def _factor(self, done: float) -> float:
        if not self.decay:
            return 1.0
        return 0.1 ** sum(done >= cut for cut in (0.375, 0.625, 0.875))

    def _boxed(self, x: Tensor) -> Tensor:
        return x if self.box is None else x.clamp_(*self.box)

    @staticmethod
    def _adam(point: Tensor, grad: Tensor, first: Tensor, second: Tensor, step: int, lr: float) -> None:
        first.mul_(BETA1).add_(grad, alpha=1 - BETA1)
        second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        below = (second / (1 - BETA2**step)).sqrt_().add_(EPS)
        point.addcdiv_(first, below, value=-lr / (1 - BETA1**step))
