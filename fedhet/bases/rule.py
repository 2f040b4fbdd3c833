"""Shapes of combination rules and the engine below them: rows that are mixed, measured and summed, never formed.

`Rows` are linear mixtures x_i = sum_j M_ij scale_j delta_j of the updates. Three things can be asked of them: their
Gram matrix (one streamed pass over the updates, float64), a weighted sum (formed by the space), and, where leaves line
up, any function of single coordinates (in blocks). A linear rule decides on the Gram matrix alone, so it also works
where no dense update ever exists (stacked LoRA of unequal rank). Memory beyond the updates is one block of n rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedhet.protocols import Space, View
from fedhet.tree import FlatTree, twins
from fedhet.types import Tree, Update

BLOCK = 1 << 13
"""Coordinates a coordinate rule sees at a time: a block of some dozens of rows fits a processor's cache."""


@dataclass(frozen=True)
class Rows:
    """k mixtures of n updates. `matrix` is M, shape (k, n), or None for the updates as they are; `weights` is (k,)."""

    sources: Sequence[Update]
    space: Space
    weights: np.ndarray
    matrix: np.ndarray | None = None
    origin: Rows | None = None
    """The unmixed rows, whose Gram matrix is computed once for all mixtures."""

    @classmethod
    def of(cls, updates: Sequence[Update], space: Space) -> Rows:
        """The updates themselves, x_i = scale_i delta_i."""
        return cls(updates, space, np.array([u.weight for u in updates], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def updates(self) -> Sequence[Update]:
        """The update each row belongs to; empty if rows were merged or left out."""
        return self.sources if len(self) == len(self.sources) else ()

    @cached_property
    def scales(self) -> np.ndarray:
        return np.array([u.scale for u in self.sources], dtype=np.float64)

    @cached_property
    def gram(self) -> np.ndarray:
        """<x_i, x_j>, shape (k, k), float64, exactly symmetric. Raises ValueError if an inner product is not finite."""
        if self.origin is not None and self.matrix is not None:
            mixed: np.ndarray = self.matrix @ self.origin.gram @ self.matrix.T
            symmetric: np.ndarray = (mixed + mixed.T) / 2
            return symmetric
        with np.errstate(over="ignore", invalid="ignore"):
            raw = self.space.gram([u.delta for u in self.sources]) * np.outer(self.scales, self.scales)
        if not np.isfinite(raw).all():
            bad = [u.job.client for u, row in zip(self.sources, raw, strict=True) if not np.isfinite(row).any()]
            raise ValueError(f"inner products of updates are not finite (clients {bad}): the gate should reject those")
        result: np.ndarray = (raw + raw.T) / 2
        return result

    def mix(self, matrix: np.ndarray, weights: np.ndarray) -> Rows:
        """New rows matrix @ x with new weights; nothing is computed yet."""
        whole = matrix if self.matrix is None else matrix @ self.matrix
        return Rows(self.sources, self.space, weights, whole, self.origin or self)

    def sum(self, coefficients: np.ndarray) -> Tree:
        """sum_i coefficients[i] x_i, formed by the space in the order of the updates."""
        c = coefficients if self.matrix is None else coefficients @ self.matrix
        return self.space.combine([u.delta for u in self.sources], [float(x) for x in c * self.scales])

    def reduce(self, function: Callable[[Tensor], Tensor]) -> Tree:
        """`function` maps a block (k, width) of rows to (width,); called on consecutive blocks of at most `BLOCK`.

        The block is overwritten between calls. Raises ValueError if the leaves of the updates do not line up.
        """
        deltas = [u.delta for u in self.sources]
        first = deltas[0]
        if isinstance(first, FlatTree) and twins(deltas):
            return FlatTree(first.schema, self._reduce([d.flat for d in deltas], function))  # type: ignore[attr-defined]
        shapes = [{k: v.shape for k, v in d.items()} for d in deltas]
        if any(list(s.items()) != list(shapes[0].items()) for s in shapes):
            raise ValueError("coordinate rules need updates of equal names and shapes")
        return {
            name: self._reduce([d[name].reshape(-1) for d in deltas], function).view(leaf.shape)
            for name, leaf in first.items()
        }

    def _reduce(self, lines: list[Tensor], function: Callable[[Tensor], Tensor]) -> Tensor:
        result = torch.empty_like(lines[0])
        for at, block in self._blocks(lines):
            result[at : at + block.shape[1]] = function(block)
        return result

    def _blocks(self, lines: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
        kind = lines[0].dtype if lines[0].dtype == torch.float64 else torch.float32
        matrix = None if self.matrix is None else torch.from_numpy(self.matrix).to(kind)
        room = torch.empty((len(lines), min(BLOCK, lines[0].numel())), dtype=kind)
        for at in range(0, lines[0].numel(), BLOCK):
            block = room[:, : lines[0].numel() - at]
            for row, line, scale in zip(block, lines, self.scales.tolist(), strict=True):
                row.copy_(line[at : at + BLOCK])
                if scale != 1.0:
                    row.mul_(scale)
            yield at, block if matrix is None else matrix @ block


class AbstractRule(ABC):
    """A rule on rows, so that mixtures can be put in front of it."""

    @abstractmethod
    def on(self, rows: Rows, view: View) -> Tree:
        """Combine rows; what the rule does to the updates themselves when nothing is in front of it."""

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        return self.on(Rows.of(updates, space), view)


class AbstractLinearRule(AbstractRule):
    """Coefficients from the Gram matrix. `Update.scale` is part of the update: u_i = scale_i * delta_i."""

    needs: ClassVar[frozenset[str]] = frozenset({"each"})
    reads_gram: ClassVar[bool] = True
    """False spares the inner products for rules that look at weights alone."""

    @abstractmethod
    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        """c with answer = sum_i c_i u_i. `gram` is (n, n) float64 of the scaled updates, or (0, 0) if not read;
        `weights` is (n,) float64, as the clients sent them, not normalised. `updates` are those the rows belong to,
        and empty if something in front of the rule merged rows."""

    def on(self, rows: Rows, view: View) -> Tree:
        gram = rows.gram if self.reads_gram else np.empty((0, 0))
        return rows.sum(self.coefficients(gram, rows.weights, rows.updates, view))


class AbstractCoordinateRule(AbstractRule):
    """Each coordinate on its own, in blocks of `BLOCK`."""

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    @abstractmethod
    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        """(n, width) scaled updates and (n,) weights to (width,)."""

    def on(self, rows: Rows, view: View) -> Tree:
        weights = torch.from_numpy(rows.weights)
        return rows.reduce(lambda block: self.reduce(block, weights))
