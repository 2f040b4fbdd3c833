"""MDA, minimum-diameter averaging: the mean of the n - f updates with the smallest diameter.

S = argmin over |S| = n - f of max_{i,j in S} |x_i - x_j|, answer = mean of S. Valid for n > 2f.
El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely Distributed Byzantine Machine Learning", arXiv:1905.03853;
the minimum-volume idea is Rousseeuw's (1985). It enumerates C(n, f) subsets, so n or f must be small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules import tolerance
from strategies.rules.geometry import mean_of, squared_distances, subsets
from strategies.rules.ties import lowest, ranks


@dataclass(frozen=True)
class MinimumDiameter(tolerance.Tolerant, AbstractLinearRule):
    """Minimum-diameter averaging (MDA): the mean of the n - f updates with the smallest diameter.

    Among subsets of equal diameter the smallest sum of squared distances decides. f: Byzantine updates to tolerate, a
    number or a share below 0.5. limit: largest number of subsets to enumerate.
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
        squared, norms = squared_distances(gram), np.diag(gram)
        sizes = norms[:, None] + norms
        lengths = ranks(squared.reshape(-1), sizes.reshape(-1)).reshape(n, n)
        best, found = np.inf, list[np.ndarray]()
        for batch in subsets(self, n, n - f, self.limit):
            diameters = lengths[batch[:, :, None], batch[:, None, :]].max(axis=(1, 2))
            if (least := diameters.min()) < best:
                best, found = least, []
            found.append(batch[diameters == best])
        tight = np.concatenate(found)
        inside = tight[:, :, None], tight[:, None, :]
        return mean_of(tight[lowest(squared[inside].sum(axis=(1, 2)), sizes[inside].sum(axis=(1, 2)))], n)
