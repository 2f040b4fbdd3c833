"""The coordinate-wise median.

answer_k = median_i x_ik, without weights; for an even number, the mean of the two middle values. It has no parameter
f: it tolerates fewer than half Byzantine updates.
Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
arXiv:1803.01498, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedhet.bases import AbstractCoordinateRule
from strategies.rules.order import middle, ordered


@dataclass(frozen=True)
class Median(AbstractCoordinateRule):
    """Coordinate-wise median, clients equally weighted."""

    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        return middle(ordered(block))
