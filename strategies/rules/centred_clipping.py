"""Centred clipping: the mean of the updates, each clipped to a ball around a centre that then moves to this mean.

v <- v + mean_i (x_i - v) min(1, radius / |x_i - v|), a few times. Theory asks for f below about n/10.
Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", arXiv:2012.10333, section 4. There
v is carried over from round to round. A rule has no state, so here every combination starts at zero, or at the
update with the smallest sum of distances; client momentum can carry the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules.geometry import distances_to, mean_of, squared_distances
from strategies.rules.ties import lowest

STARTS = ("zero", "medoid")


@dataclass(frozen=True)
class CentredClipping(AbstractLinearRule):
    """Centred clipping: a clipped mean around a moving centre, without state between rounds.

    radius: absolute; None is the median distance to the centre in each iteration. iterations: moves of the centre.
    start: "zero", or "medoid", the update nearest to all others. Raises ValueError for values out of range.
    """

    radius: float | None = None
    iterations: int = 3
    start: str = "zero"

    def __post_init__(self) -> None:
        if self.radius is not None and not self.radius > 0.0:
            raise ValueError(f"radius={self.radius} must be positive, or null for the median distance")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} must be at least 1")
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r} is not a centre to start from; use one of {', '.join(STARTS)}")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        n = len(gram)
        c = np.zeros(n)
        if self.start == "medoid":
            norms = np.sqrt(np.diag(gram))
            sums = np.sqrt(squared_distances(gram)).sum(axis=1)
            c = mean_of(np.array([lowest(sums, n * norms + norms.sum())]), n)
        for _ in range(self.iterations):
            r = distances_to(gram, c)
            radius = float(np.median(r)) if self.radius is None else self.radius
            factors = np.where(r > radius, radius / np.where(r > 0.0, r, 1.0), 1.0)
            c = c * (1.0 - factors.mean()) + factors / n
        return c
