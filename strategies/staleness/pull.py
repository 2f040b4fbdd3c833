"""FedAsync's mixing form: the step is towards the client's model, in place of adding the client's displacement.

w <- (1 - a) w + a w_i  with  a = alpha * st(u)  is the step  a * (w_i - w) = a * (delta_i + w_base - w).
Xie et al., "Asynchronous Federated Optimization", arXiv:1903.03934, Algorithm 1. The factor st(u) is a second
transform, a discount (the two commute), and alpha is the server optimizer's learning rate. A late client moves the
model back towards the version it started from; the displacement form, without this transform, does not.
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
    """FedAsync's mixing form: delta <- delta + base - state, which is exactly delta for a fresh update."""

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        if update.job.version == view.version:
            return update
        drift = subtract(widened(view.base(update.job.version)), widened(view.state))
        return replace(update, delta=rounded_like(add(widened(update.delta), drift), update.delta))
