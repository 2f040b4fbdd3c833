"""FedNova, normalised averaging: each client's update is divided by its amount of local work.

delta = t_eff * sum_i p_i * delta_i / t_i with t_eff = sum_i p_i t_i / sum_i p_i. t_i is the norm of a job, the sum of
the weights that its gradients have in its displacement: the number of steps for plain SGD, more with momentum, less
with a proximal term (see `clients.work.loop`). The server computes it from the job's budget and the method's work. It
does not read a value reported by the client, so a client cannot gain weight by reporting fewer steps.
Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", arXiv:2007.07481.
With over="population" it is the normalised variant of FedCompass (arXiv:2309.14675).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedhet.bases.rule import AbstractRule, UpdateMatrix
from fedhet.protocols import View
from fedhet.types import Tree
from strategies.rules.mean import OVER, shares


@dataclass(frozen=True)
class FedNova(AbstractRule):
    """FedNova: mean of the updates per local step, times the mean number of steps.

    over, uniform: as for the mean.

    One update alone, or updates of equal norms, give exactly the mean. Raises ValueError for values out of range and,
    when combining, after a mixing that merges updates, and for a norm that is not positive: local steps whose
    proximal term overshoots (lr * mu of 2 or more) have no direction to average.
    """

    over: str = "cohort"
    uniform: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"each", "fednova_norm"})
    gives: ClassVar[frozenset[str]] = frozenset({"mean"})

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise ValueError(f"over={self.over!r} is not a denominator; use one of {', '.join(OVER)}")

    def on(self, rows: UpdateMatrix, view: View) -> Tree:
        if not rows.updates:
            raise ValueError("FedNova divides each client's update by its own norm: no mixing before it may merge them")
        p = shares(self.over, self.uniform, rows.weights, view)
        norms = np.array([view.fednova_norm(u.job) for u in rows.updates], dtype=np.float64)
        if not (norms > 0.0).all():
            bad = rows.updates[int(np.argmin(norms > 0.0))].job
            raise ValueError(
                f"job {bad.id} of client {bad.client}: {bad.budget.steps} local steps have norm {norms.min():g}, which "
                "must be positive: make lr * mu of the local work smaller"
            )
        if np.all(norms == norms[0]) or not p.sum() > 0:
            return rows.sum(p)  # the normalisation cancels: avoid its rounding error
        return rows.times(float(p @ norms) / float(p.sum()) / norms).sum(p)
