"""Normalised averaging: clients that took more steps pull no harder.

delta = t_eff * sum_i p_i * delta_i / t_i with t_eff = sum_i p_i t_i / sum_i p_i, where t_i is the weight that all local
gradients have together in the displacement: the number of steps k for plain SGD; with momentum m
(k - m (1 - m^k) / (1 - m)) / (1 - m); with a proximal term it follows from the step size, too. The work tells the
server (`View.fednova_norm`); what a client reports of it counts for nothing, or a client could make itself heavier.
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
from fedhet.types import Job, Update
from strategies.rules.mean import OVER, shares


def effective_steps(steps: np.ndarray | np.float64, momentum: float) -> np.ndarray | np.float64:
    """What `steps` local steps with heavy-ball momentum add up to, in plain steps; shape as given."""
    if momentum == 0.0:
        return steps
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)


@dataclass(frozen=True)
class FedNova(AbstractLinearRule):
    """Mean of per-step displacements times the mean number of steps.

    over, uniform: as for the mean. momentum: None asks the work for t_i; a number in [0, 1) is the momentum of a local
    optimiser that cannot be asked.

    One update alone, or updates of equal steps, give exactly the mean. Raises ValueError for values out of range.
    """

    over: str = "cohort"
    uniform: bool = False
    momentum: float | None = None

    reads_gram: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise ValueError(f"over={self.over!r} is not a denominator; use one of {', '.join(OVER)}")
        if self.momentum is not None and not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum={self.momentum} is not in [0, 1); use the local optimiser's, 0 for plain SGD")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # depends on the instance
        return frozenset({"each"} if self.momentum is not None else {"each", "norm"})

    def _norm(self, job: Job, view: View) -> float:
        if self.momentum is None:
            return view.fednova_norm(job)
        return float(effective_steps(np.float64(max(1, job.budget.steps)), self.momentum))

    @property
    def guards(self) -> bool:
        return False

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        p = shares(self.over, self.uniform, weights, view)
        steps = np.array([self._norm(u.job, view) for u in updates], dtype=np.float64)
        if np.all(steps == steps[0]) or not p.sum() > 0:
            return p  # the normalisation cancels: spare the last bit
        mean_steps = float(p @ steps) / float(p.sum())
        return p * (mean_steps / steps)
