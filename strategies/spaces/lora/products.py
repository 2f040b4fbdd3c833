"""Updates of low-rank adapters as products of factors: exact sums and inner products for any ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fedhet.numerics import tree
from fedhet.numerics.tree import Leaf, Schema
from fedhet.types import Tree
from strategies.spaces.lora.base import AbstractLora
from strategies.spaces.lora.factors import Pair, gram, stack
from strategies.spaces.lora.names import MEAN, WHOLE, A, B, pairs, tree_of, under


class AbstractProducts(AbstractLora):
    """Base of spaces whose updates are products of factors, summed and compared as the matrices they represent.

    Ranks may differ, so leaves have different shapes: rules and optimizers of coordinates do not apply.
    """

    gives: ClassVar[frozenset[str]] = frozenset()

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        rows = [pairs(d) for d in deltas]
        total = np.zeros((len(deltas), len(deltas)))
        for layer in rows[0]:
            total += gram([row[layer] for row in rows])
        whole = [under(d, WHOLE) for d in deltas]
        return total + tree.gram(whole) if whole[0] else total

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        factors, rows = tree.scaled(coefficients, scales), [pairs(d) for d in deltas]
        room = _room(rows)
        products = {layer: stack([row[layer] for row in rows], factors, room.get(layer)) for layer in rows[0]}
        rest = [{n: leaf for n, leaf in d.items() if n.startswith((WHOLE, MEAN))} for d in deltas]
        return {**tree_of(products, {}), **(tree.weighted_sum(rest, factors) if rest[0] else {})}


def _room(rows: Sequence[Mapping[str, Pair]]) -> dict[str, Pair]:
    """One buffer for the sums of products by layer; empty if their dtypes differ."""
    leaves = {}
    for layer, (left, right) in rows[0].items():
        rank = sum(row[layer].rank for row in rows)
        leaves[f"{layer}.{A}"] = Leaf((rank, right.shape[1]), right.dtype)
        leaves[f"{layer}.{B}"] = Leaf((left.shape[0], rank), left.dtype)
    schema = Schema(tuple(leaves.items()))
    return {} if schema.dtype is None else pairs(dict(tree.empty(schema).items()))
