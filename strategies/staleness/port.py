"""Port: an update's weight depends on its staleness and on its cosine similarity to the model's last step.

    weight_i <- n_i * ( similarity * (1 + cos(delta_i, w_now - w_previous)) / 2 + freshness * B / (B + u_i) )

normalised by the mean over the cohort. w_now - w_previous is the last step of the global model; before there is one the
first term is left out for all updates.
Su, Li, "How Asynchronous can Federated Learning Be?", IEEE/ACM IWQoS 2022. The paper's bound on staleness,
beyond which clients are waited for or asked to upload early, is not part of this transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.numerics.tree import FlatTree, widened
from fedhet.protocols import View
from fedhet.types import Memory, Tree, Update


@dataclass(frozen=True)
class Port(AbstractTransform):
    """Port: weights updates by their staleness and their cosine similarity to the model's last step.

    It multiplies the weight, not the scale, as the factors are relative. similarity, freshness: the two terms' weights,
    at least 0 and above 0. bound: B, in versions. Raises ValueError for values out of range.
    """

    similarity: float = 1.0
    freshness: float = 3.0
    bound: float = 10.0

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    def __post_init__(self) -> None:
        if not self.similarity >= 0.0:
            raise ValueError(f"similarity={self.similarity} must be at least 0; 0 leaves the direction out")
        if not self.freshness > 0.0:
            raise ValueError(f"freshness={self.freshness} must be above 0, such as 3")
        if not self.bound > 0.0:
            raise ValueError(f"bound={self.bound} must be above 0 versions, such as 10")

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        age = view.version - update.job.version
        factor = self.freshness * self.bound / (self.bound + age)
        previous = memory.get("previous")
        if previous is not None:
            factor += self.similarity * (1.0 + cosine(_vector(update.delta), _vector(view.state) - previous)) / 2.0
        return replace(update, weight=update.weight * factor)

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        memory["previous"] = _vector(view.state).clone()
        return delta


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two vectors, 0 if one of them is zero."""
    norms = math.sqrt(float(torch.dot(a, a)) * float(torch.dot(b, b)))
    return 0.0 if norms == 0.0 else float(torch.dot(a, b)) / norms


def _vector(tree: Tree) -> Tensor:
    wide = widened(tree)  # inner products of half precision overflow or stop growing
    return wide.flat if isinstance(wide, FlatTree) else torch.cat([leaf.reshape(-1) for leaf in wide.values()])
