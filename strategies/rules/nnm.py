"""NNM, nearest-neighbour mixing: every update is replaced by the mean of the n - f updates nearest to it.

M_ij = 1/(n - f) for j among the n - f nearest neighbours of i, itself included. Valid for n > 2f.
Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
Heterogeneity", arXiv:2302.01772, Algorithm 2. Put in front of a rule, see `strategies.rules.chain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedhet.bases.rule import UpdateMatrix
from fedhet.protocols import View
from strategies.rules import tolerance
from strategies.rules.geometry import nearest


@dataclass(frozen=True)
class Nnm(tolerance.Tolerant):
    """Nearest-neighbour mixing (NNM): every update becomes the mean of its n - f nearest.

    f: Byzantine updates to tolerate, a number or a share below 0.5. Raises ValueError for values out of range and, when
    combining, for n <= 2f.
    """

    f: tolerance.Tolerance = 0.2

    needs: ClassVar[frozenset[str]] = frozenset({"distances"})

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def __call__(self, rows: UpdateMatrix, view: View) -> UpdateMatrix:
        n, f = len(rows), tolerance.count(self.f, len(rows))
        tolerance.within(self, f, n, 2 * f + 1)
        matrix = np.zeros((n, n))
        np.put_along_axis(matrix, nearest(rows.gram, n - f), 1.0 / (n - f), axis=1)
        return rows.mix(matrix, rows.weights)
