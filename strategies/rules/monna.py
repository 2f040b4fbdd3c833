"""MoNNA: the mean of the n - f updates nearest to a trusted client's update.

answer = mean over the n - f nearest neighbours of the pivot's update, itself included. Valid for n > 2f.
Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear Gradient Overhead",
arXiv:2209.10931, Algorithm 1 (there every node is its own pivot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.engine.aggregator import Shortage
from fedhet.protocols import View
from fedhet.types import ClientId, Update
from strategies.rules import tolerance
from strategies.rules.geometry import mean_of, nearest


@dataclass(frozen=True)
class Monna(tolerance.Tolerant, AbstractLinearRule):
    """MoNNA: the mean of the n - f updates nearest to a trusted client's update.

    pivot: the trusted client, which must take part in every combination. f: Byzantine updates to tolerate, a number or
    a share below 0.5. Raises ValueError for values out of range and, when combining, for n <= 2f or an absent pivot.
    """

    pivot: ClientId = 0
    f: tolerance.Tolerance = 0.2

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        n, f = len(gram), tolerance.count(self.f, len(gram))
        tolerance.within(self, f, n, 2 * f + 1)
        at = next((i for i, u in enumerate(updates) if u.job.client == self.pivot), None)
        if at is None:
            raise ValueError(self._absent)
        return mean_of(nearest(gram, n - f)[at], n)

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        if self.pivot not in clients:
            return Shortage("pivot", self.pivot, self._absent)
        return super().lacks(clients)

    @property
    def _absent(self) -> str:
        return f"the trusted client pivot={self.pivot} has no update of its own in this combination"
