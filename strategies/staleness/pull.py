"""FedAsync's mixing form: pull the model towards the client's model instead of adding the client's displacement.

w <- (1 - a) w + a w_i  with  a = alpha * st(u)  is the step  a * (w_i - w) = a * (delta_i + w_base - w).
Xie et al., "Asynchronous Federated Optimization", arXiv:1903.03934, Algorithm 1. The factor st(u) is a discount layer
beside this one (the two commute) and alpha the server optimiser's learning rate. A late client drags the model back
towards the version it started from; leaving this layer out gives the displacement form, which does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedhet.bases import AbstractTransform
from fedhet.numerics.tree import add, rounded_like, subtract, widened
from fedhet.protocols import View
from fedhet.types import Memory, Update


@dataclass(frozen=True)
class Pull(AbstractTransform):
    """delta becomes delta + base - state; unchanged, bit for bit, if the update is fresh."""

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        if update.job.version == view.version:
            return update
        drift = subtract(widened(view.base(update.job.version)), widened(view.state))
        return replace(update, delta=rounded_like(add(widened(update.delta), drift), update.delta))
