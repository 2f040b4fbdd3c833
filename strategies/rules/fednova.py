"""Normalised averaging: clients that took more steps pull no harder.

delta = t_eff * sum_i p_i * delta_i / t_i with t_eff = sum_i p_i t_i / sum_i p_i, where t_i is the number of local
steps, or with local momentum m the sum of the weights a step has in the displacement,
t_i = (k - m (1 - m^k) / (1 - m)) / (1 - m) for k steps.
Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", arXiv:2007.07481.
With over="population" it is the normalised variant of FedCompass (arXiv:2309.14675).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules.mean import OVER, shares


def effective_steps(steps: np.ndarray, momentum: float) -> np.ndarray:
    """What `steps` local steps with heavy-ball momentum add up to, in plain steps; shape as given."""
    if momentum == 0.0:
        return steps
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)


@dataclass(frozen=True)
class FedNova(AbstractLinearRule):
    """Mean of per-step displacements times the mean number of steps.

    over, uniform: as for the mean. momentum: of the local optimiser, in [0, 1).

    One update alone, or updates of equal steps, give exactly the mean. Raises ValueError for values out of range.
    """

    over: str = "cohort"
    uniform: bool = False
    momentum: float = 0.0

    reads_gram: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise ValueError(f"over={self.over!r} is not a denominator; use one of {', '.join(OVER)}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum={self.momentum} is not in [0, 1); use the local optimiser's, 0 for plain SGD")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        p = shares(self.over, self.uniform, weights, view)
        raw = np.array([max(1, u.job.budget.steps) for u in updates], dtype=np.float64)
        if np.all(raw == raw[0]) or not p.sum() > 0:
            return p  # the normalisation cancels: spare the last bit
        steps = effective_steps(raw, self.momentum)
        mean_steps = float(p @ steps) / float(p.sum())
        return p * (mean_steps / steps)
