"""Meamed, the mean around the median per coordinate.

answer_k = mean of the n - f values x_ik nearest to the median of coordinate k. Valid for n > 2f.
Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", arXiv:1802.10116, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedhet.bases import AbstractCoordinateRule
from strategies.rules import tolerance
from strategies.rules.order import mean_around, middle, ordered


@dataclass(frozen=True)
class Meamed(tolerance.Tolerant, AbstractCoordinateRule):
    """Meamed: per coordinate, the mean of the n - f values nearest to the median.

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
        return mean_around(rows, middle(rows), n - f)
