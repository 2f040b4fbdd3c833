"""Element-wise work on a combined update, in one go where the leaves share one buffer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedhet.tree import FlatTree
from fedhet.types import Tree


def leafwise(delta: Tree, step: Callable[[str, Tensor], Tensor]) -> Tree:
    """Apply `step(name, leaf)` to every leaf; a flat tree is one leaf named "flat"."""
    if isinstance(delta, FlatTree):
        return FlatTree(delta.schema, step("flat", delta.flat))
    return {name: step(name, leaf) for name, leaf in delta.items()}
