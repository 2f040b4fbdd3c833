"""CAF, covariance-bound agnostic filter: lower the weights of outliers along the direction of largest variance.

Start with c = 1. While sum c > n - 2f: find the top eigenvector of the covariance weighted by c / sum c and each row's
squared projection t_i on it, remember the weights of smallest top eigenvalue, then c_i <- c_i (1 - t_i / max t).
The maximum is over rows that still have weight, so that every step empties one. Valid for n > 2f.
Allouah, Guerraoui, Stephan, "Towards Trustworthy Federated Learning with Untrusted Participants", arXiv:2505.01874.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules import tolerance
from strategies.rules.spectrum import principal
from strategies.rules.ties import LEVEL

ALIVE = 1e-12
"""Weight from which a row counts as present."""


@dataclass(frozen=True)
class Caf(tolerance.Tolerant, AbstractLinearRule):
    """CAF: weighted mean after filtering along the top eigenvector; the plain mean if f is 0.

    Equal updates give the plain mean as well. f: Byzantine updates to tolerate, a number or a share below 0.5. Raises
    ValueError for values out of range and, when combining, for n <= 2f.
    """

    f: tolerance.Tolerance = 0.2

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        n, f = len(gram), tolerance.count(self.f, len(gram))
        tolerance.within(self, f, n, 2 * f + 1)
        c = np.ones(n)
        best, best_weights = np.inf, c
        while c.sum() > n - 2 * f:
            value, extents = principal(gram, c / c.sum())
            if value < best * (1.0 - LEVEL):
                best, best_weights = value, c
            alive = c > ALIVE
            widest = float(extents[alive].max())
            if value <= 0.0 or widest <= 0.0:
                break
            c = np.where(alive, c * np.clip(1.0 - extents / widest, 0.0, 1.0), 0.0)
        result: np.ndarray = best_weights / best_weights.sum()
        return result
