"""Adapters that continue between jobs: the server's factors, truncated to a client's rank, and back.

On the server and on the wire the scaling is 1: the product of a state's factors is the update itself. A device computes
s B A, so received factors are divided: B by s where factors are averaged (A is then comparable across clients), or both
by the square root of s where products are combined.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.names import FACTOR, A, B, pairs, under


def factors_of(tree: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The server's adapters in a state or payload, by layer."""
    return pairs(under(tree, FACTOR))


def as_factors(products: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Leaves of a state for adapters by layer."""
    leaves = {}
    for name, pair in products.items():
        leaves[f"{FACTOR}{name}.{A}"], leaves[f"{FACTOR}{name}.{B}"] = pair.right, pair.left
    return leaves


def cut(pair: Pair, rank: int) -> Pair:
    """The first columns and rows: of a compressed pair, its best approximation of this rank."""
    return Pair(pair.left[:, :rank], pair.right[:rank])


def reversed_sign(pair: Pair) -> Pair:
    """Minus the product."""
    return Pair(pair.left, -pair.right)


@torch.no_grad()
def fill(panel: Panel, starts: Mapping[str, Pair], drawn: Mapping[str, Tensor], *, even: bool) -> None:
    """Copy products into a device's adapters: `even` divides both factors by the square root of s, otherwise B by s.

    Rows beyond a product's own rank are those of `drawn`, with B zero there.
    """
    for (name, factor), s in zip(panel.factors.items(), panel.kind.scalings, strict=True):
        start, of_a = starts[name], s**0.5 if even else 1.0
        a, b = factor[A].view(factor[A].shape[0], -1), factor[B].view(factor[B].shape[0], -1)
        q = start.rank
        a.copy_(drawn[name])
        b.zero_()
        a[:q].copy_(start.right / of_a)
        b[:, :q].copy_(start.left * (of_a / s))


def ends(panel: Panel, *, scaling_on: str) -> dict[str, Pair]:
    """The current products of the adapters, by layer, with s folded into A or B."""
    found = {}
    for (name, factor), s in zip(panel.factors.items(), panel.kind.scalings, strict=True):
        a, b = factor[A].detach().flatten(1), factor[B].detach().flatten(1)
        found[name] = Pair(b * s if scaling_on == B else b.clone(), a * s if scaling_on == A else a.clone())
    return found
