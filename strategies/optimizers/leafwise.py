"""Element-wise work on a combined update, in one go where the leaves share one buffer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedhet.tree import FlatTree, widened
from fedhet.types import Tree


def leafwise(delta: Tree, step: Callable[[str, Tensor], Tensor]) -> Tree:
    """Apply `step(name, leaf)` to every leaf; a flat tree is one leaf named "flat". Leaves in half precision are handed
    out in float32, so that what a step remembers is, and come back rounded once."""
    if isinstance(delta, FlatTree):
        return FlatTree(delta.schema, step("flat", widened(delta.flat)).to(delta.flat.dtype))
    return {name: step(name, widened(leaf)).to(leaf.dtype) for name, leaf in delta.items()}
