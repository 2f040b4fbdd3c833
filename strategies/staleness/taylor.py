"""DC-ASGD: a first-order correction of late updates, with the squared gradient in place of the Hessian.

For a gradient g taken at w_old when the model is w_now:  g_c = g + lambda * g * g * (w_now - w_old).
For a displacement of K local steps of size eta, with mean gradient -delta / (K eta), this is

    delta_c = delta - (lambda / (K eta)) * delta * delta * (w_now - w_old)

(all products element by element; the sign is minus because a displacement points against the gradient, and lambda is
that of the gradient form). Adaptive: lambda / sqrt(MS + 1e-7) with MS <- decay * MS + (1 - decay) * g * g.
Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", arXiv:1609.08326.
It is valid for small w_now - w_old, and g * g is a coarse approximation of the Hessian away from the optimum: the
correction can be clipped. The corrected update is scale * delta: the correction grows with the square of the
displacement, so without the scale it would undo norm clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.numerics.tree import FlatTree, rounded_like, widened
from fedhet.protocols import View
from fedhet.types import Memory, Tree, Update


@dataclass(frozen=True)
class Taylor(AbstractTransform):
    """DC-ASGD: a first-order (Taylor) correction of late updates; fresh ones are unchanged, bit for bit.

    lam: lambda of the gradient form. lr: the local step size eta. adaptive, decay: use the running mean square MS with
    this decay. clip: upper bound of each element of the correction, relative to that of the displacement; None: no
    bound. Raises ValueError for values out of range.
    """

    lam: float = 0.04
    lr: float = 0.1
    adaptive: bool = False
    decay: float = 0.95
    clip: float | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    def __post_init__(self) -> None:
        if not self.lam >= 0.0:
            raise ValueError(f"lam={self.lam} must be at least 0; 0 switches the correction off")
        if not self.lr > 0.0:
            raise ValueError(f"lr={self.lr} must be the local step size, above 0")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay={self.decay} is not in [0, 1); 0.95 is usual")
        if self.clip is not None and not self.clip > 0.0:
            raise ValueError(f"clip={self.clip} must be above 0; null is no bound")

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        travelled = max(1, update.job.budget.steps) * self.lr
        fresh = update.job.version == view.version
        if self.lam == 0.0 or (fresh and not self.adaptive):
            return update
        sent, now, old = (widened(t) for t in (update.delta, view.state, view.base(update.job.version)))

        def corrected(name: str, delta: Tensor, drift: Tensor) -> Tensor:
            strength: float | Tensor = self.lam * update.scale
            if self.adaptive:
                counted = delta if update.scale == 1.0 else delta * update.scale
                strength = strength / (self._mean_square(name, counted / travelled, memory) + 1e-7).sqrt()
            correction = delta * delta * drift * (strength / travelled)
            if self.clip is not None:
                bound = delta.abs() * self.clip
                correction = torch.maximum(torch.minimum(correction, bound), -bound)
            return delta - correction

        if isinstance(sent, FlatTree) and isinstance(now, FlatTree) and isinstance(old, FlatTree):
            delta: Tree = FlatTree(sent.schema, corrected("flat", sent.flat, now.flat - old.flat))
        else:
            delta = {k: corrected(k, d, now[k] - old[k]) for k, d in sent.items()}
        return update if fresh else replace(update, delta=rounded_like(delta, update.delta))

    def _mean_square(self, name: str, gradient: Tensor, memory: Memory) -> Tensor:
        key = f"ms/{name}"
        old = memory.get(key)
        square = gradient * gradient
        memory[key] = square if old is None else old * self.decay + square * (1.0 - self.decay)
        return memory[key]
