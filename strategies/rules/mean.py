"""The weighted mean, with one of three denominators.

sum_i c_i * scale_i * delta_i with c_i = n_i / sum_{j in cohort} n_j (FedAvg: McMahan et al., "Communication-Efficient
Learning of Deep Networks from Decentralized Data", arXiv:1602.05629, Algorithm 1), c_i = n_i / sum over all registered
clients (FedCompass, FedFix: a small group moves the model a little), or c_i = 1 / (number of updates) (FedBuff: Nguyen
et al., "Federated Learning with Buffered Asynchronous Aggregation", arXiv:2106.06639, Algorithm 1).
`scale` is never normalised away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update

OVER = ("cohort", "population", "count")


def shares(over: str, uniform: bool, weights: np.ndarray, view: View) -> np.ndarray:
    """The coefficients, shape (n,) float64. Raises ValueError if the weights leave nothing to divide by."""
    count = len(weights)
    if over == "count" or (over == "cohort" and uniform):
        return np.full(count, 1.0 / count)
    if over == "population" and uniform:
        return np.full(count, 1.0 / len(view.roster))
    total = float(weights.sum()) if over == "cohort" else float(view.roster.total_examples)
    if not total > 0:
        raise ValueError(
            f"the weights over the {over} add up to {total}; use uniform=True if clients report no samples"
        )
    return weights / total


@dataclass(frozen=True)
class Mean(AbstractLinearRule):
    """Weighted mean of the scaled updates.

    over: the denominator. "cohort": the sum of the weights combined now; "population": that of all registered clients,
        not renormalised; "count": the number of updates combined now.
    uniform: every client has weight 1 in place of its number of samples.

    Raises ValueError for another `over`.
    """

    over: str = "cohort"
    uniform: bool = False

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"mean"})
    reads_gram: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise ValueError(f"over={self.over!r} is not a denominator; use one of {', '.join(OVER)}")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        return shares(self.over, self.uniform, weights, view)

    def compares(self) -> str:
        return ""

    def part(self, update: Update) -> tuple[float, float]:
        """The numerator of this update's coefficient, and the same number as its part of the denominator."""
        share = 1.0 if self.uniform or self.over == "count" else update.weight
        return share, share

    def divisor(self, mass: float, count: int, view: View) -> float:
        """The denominator. Raises ValueError if it is not positive."""
        if self.over == "population":
            mass = float(len(view.roster) if self.uniform else view.roster.total_examples)
        if not mass > 0:
            raise ValueError(f"the weights over the {self.over} add up to {mass}; use uniform=True")
        return mass
