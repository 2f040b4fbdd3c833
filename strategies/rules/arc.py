"""ARC, adaptive robust clipping: scale the updates of largest norm down to the next largest norm.

k = floor(2 f/n (n - f)); the k updates of largest norm are scaled to the (k + 1)-th largest norm. Valid for n > 2f.
Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "The Vital Role of Gradient Clipping in Byzantine-Resilient
Distributed Learning", arXiv:2405.14432, Algorithm 2. Put in front of a rule, see `strategies.rules.chain`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedhet.bases.rule import UpdateMatrix
from fedhet.protocols import View
from strategies.rules import tolerance
from strategies.rules.clipping import clip


@dataclass(frozen=True)
class Arc(tolerance.Tolerant):
    """Adaptive robust clipping (ARC): the clipping radius is one of the updates' norms.

    f: Byzantine updates to tolerate, a number or a share below 0.5. Raises ValueError for values out of range and, when
    combining, for n <= 2f.
    """

    f: tolerance.Tolerance = 0.2

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def __call__(self, rows: UpdateMatrix, view: View) -> UpdateMatrix:
        n, f = len(rows), tolerance.count(self.f, len(rows))
        tolerance.within(self, f, n, 2 * f + 1)
        k = 2 * f * (n - f) // n
        norms = np.sort(np.sqrt(np.maximum(np.diag(rows.gram), 0.0)))
        return clip(rows, float(norms[n - 1 - k])) if k else rows
