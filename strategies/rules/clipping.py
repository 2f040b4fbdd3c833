"""Norm clipping: no update has a norm above a fixed radius.

M = diag(min(1, radius / |x_i|)). Put in front of a rule, see `strategies.rules.chain`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedhet.bases.rule import UpdateMatrix
from fedhet.protocols import View


def clip(rows: UpdateMatrix, radius: float) -> UpdateMatrix:
    """Rows scaled down to at most this length."""
    norms = np.sqrt(np.maximum(np.diag(rows.gram), 0.0))
    factors = np.where(norms > radius, radius / np.where(norms > 0.0, norms, 1.0), 1.0)
    return rows.times(factors)


@dataclass(frozen=True)
class Clipping:
    """Norm clipping: updates longer than `radius` are scaled down to it. Raises ValueError unless it is positive."""

    radius: float = 2.0

    def __post_init__(self) -> None:
        if not self.radius > 0.0:
            raise ValueError(f"radius={self.radius} must be positive")

    def __call__(self, rows: UpdateMatrix, view: View) -> UpdateMatrix:
        return clip(rows, self.radius)

    def factor(self, length: float) -> float:
        """The factor for an update of this norm; it does not depend on other updates."""
        return min(1.0, self.radius / length) if length > 0.0 else 1.0
