"""Smallest maximum eigenvalue averaging: the mean of the n - f updates that spread least in any one direction.

S = argmin over |S| = n - f of the largest eigenvalue of the covariance of S, answer = mean of S. Valid for n > 2f.
Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the Privacy-Robustness-Utility Trilemma in Distributed Learning",
arXiv:2302.04787, Algorithm 2. Looks at C(n, f) subsets, so n is small or f is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules import tolerance
from strategies.rules.geometry import mean_of, subsets


@dataclass(frozen=True)
class Smea(AbstractLinearRule):
    """Mean of the n - f updates of smallest top eigenvalue; ties go to the lexicographically first subset.

    f: wrong updates to stand, a number or a share below 0.5. limit: most subsets looked at.
    Raises ValueError for values out of range and, when combining, for n <= 2f or more subsets than `limit`.
    """

    f: tolerance.Tolerance = 0.2
    limit: int = 100_000

    def __post_init__(self) -> None:
        tolerance.check(self.f)
        if self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 subset")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        n, f = len(gram), tolerance.count(self.f, len(gram))
        tolerance.within(self, f, n, 2 * f + 1)
        best, chosen = np.inf, np.arange(n)
        for batch in subsets(self, n, n - f, self.limit):
            inner = gram[batch[:, :, None], batch[:, None, :]]
            row = inner.mean(axis=1, keepdims=True)
            around = inner - row - row.transpose(0, 2, 1) + row.mean(axis=2, keepdims=True)
            top = np.linalg.eigvalsh(around)[:, -1]
            at = int(top.argmin())
            if top[at] < best:
                best, chosen = float(top[at]), batch[at]
        return mean_of(chosen, n)
