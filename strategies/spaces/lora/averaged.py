"""Base of spaces that average adapters factor by factor, which is exact only if one factor is the same on all clients.

With equal scalings, sum_i p_i B_i A_i - (sum_i p_i B_i)(sum_i p_i A_i) = sum_i p_i (B_i - mean B)(A_i - mean A): a
covariance, zero if all B or all A agree. Scalings are folded into B before anything is averaged. Updates are increments
of factors, padded with zeros to the largest rank, so they line up element by element and every rule and optimizer of
plain vectors works; distances are those of the factors, not of the products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.base import AbstractLora, shapes_of
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import FACTOR, WHOLE, A, B, under
from strategies.spaces.lora.warm import as_factors, cut, ends, factors_of, fill

CHANGED = "lora/changed"
"""Which of A and B the last combination changed: two numbers, 0 or 1."""


class AbstractAveraged(AbstractLora):
    """The state has one pair of factors of the largest rank; a device gets their first columns and rows."""

    gives: ClassVar[frozenset[str]] = frozenset({"coordinates"})
    moves: ClassVar[bool] = False

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return {**as_factors(zero_products(self, shapes, kind)), CHANGED: torch.ones(2, dtype=kind)}

    def adapter_products(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return factors_of(state)

    def cut_for(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Pair]:
        """The state's factors at a job's rank."""
        shapes, rank = shapes_of(state), self.rank_of(job)
        return {n: cut(p, self.rank_at(n, shapes[n], rank)) for n, p in factors_of(state).items()}

    def merge(self, state: Tree, delta: Tree) -> Tree:
        held, moved = dict(state.items()), dict(delta.items())
        base = ledger.advance(held, {}, under(moved, WHOLE), smallest=False)
        for name, leaf in held.items():
            if name.startswith(FACTOR):
                step = moved.get(name.removeprefix(FACTOR))
                base[name] = leaf if step is None else leaf + step.to(leaf.dtype)
        moves = [any(bool(leaf.any()) for n, leaf in moved.items() if n.endswith("." + letter)) for letter in (A, B)]
        return {**base, CHANGED: torch.tensor(moves, dtype=held[CHANGED].dtype)}


def first(space: AbstractLora, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """The initial A of all clients, by layer, of the largest rank."""
    return space.draw({name: (space.rank_at(name, shape, space.rank), shape.k) for name, shape in shapes.items()})


def zero_products(space: AbstractLora, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Pair]:
    """The initial factors: A drawn, B zero."""
    drawn = first(space, shapes)
    return {n: Pair(torch.zeros((s.d, len(drawn[n])), dtype=kind), drawn[n].to(kind)) for n, s in shapes.items()}


def install_pairs(panel: Panel, pairs: Mapping[str, Pair]) -> None:
    """Copy averaged factors of a job's rank into a device's adapters."""
    panel.starts = pairs
    fill(panel, pairs, {name: pair.right for name, pair in pairs.items()}, even=False)


def increments(panel: Panel) -> dict[str, Tensor]:
    """The change of the trained factors, with s folded into B."""
    factors: dict[str, Tensor] = {}
    for name, end in ends(panel, scaling_on=B).items():
        start = panel.starts[name]
        moved = {A: end.right - start.right, B: end.left - start.left}
        factors.update({f"{name}.{letter}": moved[letter] for letter in panel.kind.trained})
    return factors


def padded(leaf: Tensor, letter: str, rank: int, beyond: Tensor | None = None) -> Tensor:
    """A factor's increment at a larger rank: zeros, or `beyond` (a factor of that rank) in the new rows or columns."""
    side = 0 if letter == A else 1
    own = leaf.shape[side]
    shape = (rank, leaf.shape[1]) if letter == A else (leaf.shape[0], rank)
    whole = torch.zeros(shape, dtype=leaf.dtype) if beyond is None else beyond.to(leaf.dtype).clone()
    whole.narrow(side, 0, own).copy_(leaf)
    return whole
