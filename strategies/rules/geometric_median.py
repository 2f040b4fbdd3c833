"""The geometric median (RFA) by smoothed Weiszfeld iterations on the Gram matrix.

z = argmin sum_i |x_i - z|; iterate b_i = 1 / max(nu, |x_i - z|), z <- sum_i b_i x_i / sum_i b_i, with z stored as its
coefficients c_i = b_i / sum b. The first b_i are inverse median distances to the others in place of 1 (the mean), so
that one update of norm 1e30 costs no more iterations. It has no parameter f: it tolerates fewer than half Byzantine
updates.
Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", arXiv:1912.13445, Algorithm 2 (RFA). The
smoothing nu is relative to the median norm of the updates, which may be of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules.geometry import distances_to, squared_distances


@dataclass(frozen=True)
class GeometricMedian(AbstractLinearRule):
    """Geometric median (RFA): the point of smallest sum of distances to the updates, equally weighted.

    smoothing: nu as a share of the median norm. iterations, tolerance: stop after so many steps, or when no
    coefficient changes by more than that share of itself. Raises ValueError for values out of range.
    """

    smoothing: float = 1e-6
    iterations: int = 100
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        if not 0.0 < self.smoothing < float("inf"):
            raise ValueError(f"smoothing={self.smoothing} must be positive; 1e-6 of the median norm is usual")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} must be at least 1")
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance={self.tolerance} must be 0 or more")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        nu = self.smoothing * float(np.median(np.sqrt(np.maximum(np.diag(gram), 0.0))))
        nu = max(nu, 1e-150)  # when most updates are zero
        b = 1.0 / np.maximum(nu, np.median(np.sqrt(squared_distances(gram)), axis=1))
        c: np.ndarray = b / b.sum()
        for _ in range(self.iterations):
            b = 1.0 / np.maximum(nu, distances_to(gram, c))
            before, c = c, b / b.sum()
            if np.all(np.abs(c - before) <= self.tolerance * c):
                break
        return c
