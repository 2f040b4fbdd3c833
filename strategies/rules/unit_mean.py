"""The mean of updates scaled to one norm: the control experiment for the Flag Aggregator.

answer = median(|x|) / n sum_i x_i / |x_i|. A single update moves it by at most 2/n of the median norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update


@dataclass(frozen=True)
class UnitMean(AbstractLinearRule):
    """Mean of the updates after scaling each to the median norm; a zero update counts as zero."""

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        s = np.sqrt(np.maximum(np.diag(gram), 0.0))
        c: np.ndarray = np.divide(float(np.median(s)) / len(s), s, out=np.zeros(len(s)), where=s > 0.0)
        return c
