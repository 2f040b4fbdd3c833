"""Shapes of combination rules and the engine below them: rows that are mixed, measured and summed, never formed.

`UpdateMatrix` are linear mixtures x_i = sum_j M_ij scale_j delta_j of the updates. Three things can be asked of them:
their Gram matrix (one streamed pass over the updates, float64), a weighted sum (formed by the space), and, where leaves
line up, any function of single coordinates (in blocks). A linear rule decides on the Gram matrix alone, so it also
works where no dense update ever exists (stacked LoRA of unequal rank). Memory beyond the updates is one block of n
rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedhet.numerics.tree import FlatTree, same_layout
from fedhet.protocols import Space, View
from fedhet.types import Tree, Update

BLOCK = 1 << 13
"""Coordinates a coordinate rule sees at a time: a block of some dozens of rows fits a processor's cache."""


class Columnwise(Protocol):
    """A function of single coordinates. As a frozen dataclass of plain fields in a module of its own name it can be
    carried out by other processes, too."""

    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        """(k, width) rows and their (k,) weights to (width,). The block is overwritten between calls."""
        ...


@dataclass(frozen=True)
class Blocks:
    """function(M diag(scales) x, weights), on consecutive blocks of at most `BLOCK` columns. M is (k, n), or None."""

    function: Columnwise
    weights: np.ndarray
    scales: np.ndarray
    matrix: np.ndarray | None = None

    def of(self, lines: Sequence[Tensor], result: Tensor | None = None) -> Tensor:
        """Of n vectors of equal size, into `result` if there is one. Any columns give the bits that all give, if they
        begin at a multiple of `BLOCK`."""
        result = torch.empty_like(lines[0]) if result is None else result
        weights = torch.from_numpy(self.weights)
        for at, block in self._blocks(lines):
            result[at : at + block.shape[1]] = self.function.reduce(block, weights)
        return result

    def _blocks(self, lines: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
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


class Geometry(Protocol):
    """What rows ask of a space: its inner products and sums."""

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray: ...

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree: ...


@runtime_checkable
class Spread(Protocol):
    """A geometry that has functions of single coordinates carried out in its own way, such as in several places."""

    def spread(self, deltas: Sequence[Tree], blocks: Blocks) -> Tree: ...


@dataclass(frozen=True)
class UpdateMatrix:
    """k mixtures of n updates. `matrix` is M, shape (k, n), or None for the updates as they are; `weights` is (k,)."""

    sources: Sequence[Update]
    space: Geometry
    weights: np.ndarray
    matrix: np.ndarray | None = None
    origin: UpdateMatrix | None = None
    """The unmixed rows, whose Gram matrix is computed once for all mixtures."""
    shares: np.ndarray | None = None
    """M without what rows were multiplied by since (`times`), shape (k, n); None where nothing was."""

    @classmethod
    def of(cls, updates: Sequence[Update], space: Geometry) -> UpdateMatrix:
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

    def mix(self, matrix: np.ndarray, weights: np.ndarray) -> UpdateMatrix:
        """New rows matrix @ x with new weights; nothing is computed yet."""
        whole = matrix if self.matrix is None else matrix @ self.matrix
        shares = None if self.shares is None else matrix @ self.shares
        return UpdateMatrix(self.sources, self.space, weights, whole, self.origin or self, shares)

    def times(self, factors: np.ndarray) -> UpdateMatrix:
        """Row i times factors[i] (k,): a length that belongs to the row as `Update.scale` does, not a share of the sum.

        The difference shows where updates cover a part of the coordinates each: shares are then taken anew among those
        who cover one, lengths are not.
        """
        shares = self.shares if self.shares is not None else self.matrix
        whole = np.diag(factors) if self.matrix is None else factors[:, None] * self.matrix
        shares = np.eye(len(self)) if shares is None else shares
        return UpdateMatrix(self.sources, self.space, self.weights, whole, self.origin or self, shares)

    def sum(self, coefficients: np.ndarray) -> Tree:
        """sum_i coefficients[i] x_i, formed by the space in the order of the updates."""
        c, scales = coefficients if self.matrix is None else coefficients @ self.matrix, self.scales
        if self.shares is not None:
            shares = coefficients @ self.shares
            scales = scales * np.divide(c, shares, out=np.zeros_like(c), where=shares != 0.0)
            c = shares
        return self.space.combine([u.delta for u in self.sources], c.tolist(), scales.tolist())

    def reduce(self, function: Columnwise) -> Tree:
        """`function` of every coordinate, in blocks; by the space where it is `Spread`. Raises ValueError if the leaves
        of the updates do not line up."""
        deltas = [u.delta for u in self.sources]
        blocks = Blocks(function, self.weights, self.scales, self.matrix)
        if isinstance(self.space, Spread):
            return self.space.spread(deltas, blocks)
        first = deltas[0]
        if isinstance(first, FlatTree) and same_layout(deltas):
            return FlatTree(first.schema, blocks.of([d.flat for d in deltas]))  # type: ignore[attr-defined]
        shapes = [{k: v.shape for k, v in d.items()} for d in deltas]
        if any(list(s.items()) != list(shapes[0].items()) for s in shapes):
            raise ValueError("coordinate rules need updates of equal names and shapes")
        return {name: blocks.of([d[name].reshape(-1) for d in deltas]).view(leaf.shape) for name, leaf in first.items()}


class AbstractRule(ABC):
    """A rule on rows, so that mixtures can be put in front of it."""

    @abstractmethod
    def on(self, rows: UpdateMatrix, view: View) -> Tree:
        """Combine rows; what the rule does to the updates themselves when nothing is in front of it."""

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        return self.on(UpdateMatrix.of(updates, space), view)


class AbstractLinearRule(AbstractRule):
    """Coefficients from the Gram matrix. `Update.scale` is part of the update: u_i = scale_i * delta_i."""

    needs: ClassVar[frozenset[str]] = frozenset({"each", "distances"})
    reads_gram: ClassVar[bool] = True
    """False spares the inner products for rules that look at weights alone."""

    @abstractmethod
    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        """c with answer = sum_i c_i u_i. `gram` is (n, n) float64 of the scaled updates, or (0, 0) if not read;
        `weights` is (n,) float64, as the clients sent them, not normalised. `updates` are those the rows belong to,
        and empty if something in front of the rule merged rows."""

    def on(self, rows: UpdateMatrix, view: View) -> Tree:
        gram = rows.gram if self.reads_gram else np.empty((0, 0))
        found = np.asarray(self.coefficients(gram, rows.weights, rows.updates, view), dtype=np.float64)
        if found.shape != (len(rows),):
            raise ValueError(f"{type(self).__name__}: coefficients has shape {found.shape}, needs ({len(rows)},)")
        if not np.isfinite(found).all():
            raise ValueError(f"{type(self).__name__}: coefficients {found.tolist()} are not finite")
        return rows.sum(found)


class AbstractCoordinateRule(AbstractRule):
    """Each coordinate on its own, in blocks of `BLOCK`."""

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})

    @abstractmethod
    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        """(n, width) scaled updates and (n,) weights to (width,)."""

    def on(self, rows: UpdateMatrix, view: View) -> Tree:
        return rows.reduce(self)
