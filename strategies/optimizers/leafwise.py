"""Element-wise functions of a combined update, in one call where the leaves share one buffer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedhet.numerics.tree import FlatTree, rounded_like, widened
from fedhet.types import Tree


def leafwise(delta: Tree, step: Callable[[str, Tensor], Tensor]) -> Tree:
    """Apply `step(name, leaf)` to every leaf; a flat tree is one leaf named "flat".

    Leaves of half precision are passed as float32, so that moments are stored in it, and the step is rounded once.
    """
    wide = widened(delta)
    if isinstance(wide, FlatTree):
        return rounded_like(FlatTree(wide.schema, step("flat", wide.flat)), delta)
    return rounded_like({name: step(name, leaf) for name, leaf in wide.items()}, delta)
