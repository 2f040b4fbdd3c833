"""Two shapes of combination rule: linear (decides on inner products) and coordinate-wise.

A linear rule maps the n x n Gram matrix and the clients' weights to coefficients c; the answer sum_i c_i u_i is
formed by the space, so the rule also works where no dense update ever exists (stacked LoRA of unequal rank).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedhet.protocols import Space, View
from fedhet.tree import FlatTree, Schema
from fedhet.types import Tree, Update

BLOCK = 1 << 16
"""Coordinates a coordinate rule sees at a time."""


class AbstractLinearRule(ABC):
    """Coefficients from the Gram matrix. `Update.scale` is part of the update: u_i = scale_i * delta_i."""

    needs: ClassVar[frozenset[str]] = frozenset({"each"})
    reads_gram: ClassVar[bool] = True
    """False spares the inner products for rules that look at weights alone."""

    @abstractmethod
    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        """c with answer = sum_i c_i u_i. `gram` is (n, n) float64 of the scaled updates, or (0, 0) if not read;
        `weights` is (n,) float64, as the clients sent them, not normalised."""

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        deltas = [u.delta for u in updates]
        scales = np.array([u.scale for u in updates])
        weights = np.array([u.weight for u in updates], dtype=np.float64)
        gram = space.gram(deltas) * np.outer(scales, scales) if self.reads_gram else np.empty((0, 0))
        c = self.coefficients(gram, weights, updates, view) * scales
        return space.combine(deltas, [float(x) for x in c])


class AbstractCoordinateRule(ABC):
    """Each coordinate on its own, in blocks of `BLOCK`."""

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    @abstractmethod
    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        """(n, width) scaled updates and (n,) weights to (width,)."""

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        schema = Schema.of(updates[0].delta)
        rows = [_row(u) for u in updates]
        weights = torch.tensor([u.weight for u in updates], dtype=torch.float64)
        result = torch.empty_like(rows[0])
        for at in range(0, len(result), BLOCK):
            block = torch.stack([r[at : at + BLOCK] * u.scale for r, u in zip(rows, updates, strict=True)])
            result[at : at + BLOCK] = self.reduce(block, weights)
        return FlatTree(schema, result)


def _row(update: Update) -> Tensor:
    if isinstance(update.delta, FlatTree):
        return update.delta.flat
    return torch.cat([leaf.reshape(-1) for leaf in update.delta.values()])
