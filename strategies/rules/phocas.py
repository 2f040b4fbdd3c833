"""Phocas: the mean around the trimmed mean, per coordinate.

answer_k = mean of the n - f values x_ik nearest to the f-trimmed mean of coordinate k. Valid for n > 2f.
Xie, Koyejo, Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent", arXiv:1805.09682, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedhet.bases import AbstractCoordinateRule
from strategies.rules import tolerance
from strategies.rules.order import mean_around, ordered, trimmed


@dataclass(frozen=True)
class Phocas(tolerance.Tolerant, AbstractCoordinateRule):
    """Phocas: per coordinate, the mean of the n - f values nearest to the trimmed mean.

    f: Byzantine updates to tolerate, a number or a share below 0.5. Raises ValueError for values out of range and, when
    combining, for n <= 2f.
    """

    f: tolerance.Tolerance = 0.2

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        n, f = len(block), tolerance.count(self.f, len(block))
        tolerance.within(self, f, n, 2 * f + 1)
        rows = ordered(block)
        return mean_around(rows, trimmed(rows, f), n - f)
