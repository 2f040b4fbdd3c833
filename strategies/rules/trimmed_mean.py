"""The coordinate-wise trimmed mean.

answer_k = mean of x_ik over i without the f smallest and the f largest values. Valid for n > 2f.
Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
arXiv:1803.01498, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedhet.bases import AbstractCoordinateRule
from strategies.rules import tolerance
from strategies.rules.order import ordered, trimmed


@dataclass(frozen=True)
class TrimmedMean(tolerance.Tolerant, AbstractCoordinateRule):
    """Coordinate-wise trimmed mean: without the f smallest and the f largest values.

    f: values to remove at either end, a number or a share below 0.5. Raises ValueError for values out of range and,
    when combining, for n <= 2f.
    """

    f: tolerance.Tolerance = 0.2

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        n, f = len(block), tolerance.count(self.f, len(block))
        tolerance.within(self, f, n, 2 * f + 1)
        return trimmed(ordered(block), f) if f else block.mean(0)
