"""Names of leaves: the kind of a tensor follows from its name, never from its shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from fedhet.types import Tree
from strategies.spaces.lora.factors import Pair

A, B = "lora_A", "lora_B"
"""peft's names of right (r, k) and left (d, r)."""

ADAPTED, FROZEN, WHOLE = "adapted/", "frozen/", "whole/"
"""Prefixes of base weights: with an adapter; frozen; trained and sent in full."""

FACTOR, PAST, STAMP, STILL = "factor/", "past/", "lora/stamp", "lora/still"
"""Prefixes of the server's adapters and of the last versions' steps; names of the stamp (version, alpha, hash of the
base) and of the frozen weights' hash."""

MEAN = "mean/"
"""Prefix of plain increments in an update, in addition to products: they are summed, and not part of norms."""


def pairs(delta: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The products in an update, by adapted layer."""
    products = (name for name in delta if not name.startswith((WHOLE, MEAN)))
    ends = [name.removesuffix("." + A) for name in products if name.endswith("." + A)]
    return {name: Pair(delta[f"{name}.{B}"], delta[f"{name}.{A}"]) for name in ends}


def tree_of(products: Mapping[str, Pair], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An update from products by layer and fully sent parameters by name."""
    tree = {}
    for name, pair in products.items():
        tree[f"{name}.{A}"], tree[f"{name}.{B}"] = pair.right, pair.left
    return {**tree, **{WHOLE + name: leaf for name, leaf in whole.items()}}


def under(tree: Tree, *prefixes: str) -> dict[str, Tensor]:
    """The leaves whose names begin with one of the prefixes, in the tree's order, by the rest of their names."""
    found = {}
    for name, leaf in tree.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = leaf
                break
    return found


def base_names(names: Iterable[str]) -> Iterator[str]:
    """The names of base weights."""
    return (name for name in names if name.startswith((ADAPTED, FROZEN, WHOLE)))


def layer_of(name: str) -> str:
    """The adapted layer whose weight has this name (with or without "adapted/")."""
    return name.removeprefix(ADAPTED).removesuffix("weight").removesuffix(".")
