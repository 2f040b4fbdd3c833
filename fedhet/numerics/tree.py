"""Arithmetic on named tensors, fast when the leaves are views of one flat buffer.

A `FlatTree` is a `Tree` whose leaves are consecutive views of one contiguous 1-D tensor, all of one dtype: copying,
adding and serialising it is one operation instead of one per layer. Everything here also takes plain mappings, leaf
by leaf. Nothing modifies its arguments.
"""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedhet import native
from fedhet.numerics import gram as inner
from fedhet.numerics.buffer_pool import Shelf
from fedhet.types import Tree

PIECE = 1 << 18
"""Elements summed at a time, so that the running sum stays in cache; element-wise, so no bit depends on it."""

SHELF = Shelf()
"""Where large results lie; which memory it is shows in no result."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """Shape and dtype of one named tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Schema(Mapping[str, Leaf]):
    """Ordered names with shapes and dtypes: what a tree must look like. Equal schemas have equal order too."""

    leaves: tuple[tuple[str, Leaf], ...]
    size: int = field(init=False, repr=False, compare=False)
    """Number of elements of all leaves."""
    nbytes: int = field(init=False, repr=False, compare=False)
    """Bytes of all leaves, without any header."""
    dtype: torch.dtype | None = field(init=False, repr=False, compare=False)
    """The dtype all leaves share, or None."""
    _index: dict[str, Leaf] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = {leaf.dtype for _, leaf in self.leaves}
        # asked for with every message: once is enough
        object.__setattr__(self, "size", sum(leaf.size for _, leaf in self.leaves))
        object.__setattr__(self, "nbytes", sum(leaf.nbytes for _, leaf in self.leaves))
        object.__setattr__(self, "dtype", kinds.pop() if len(kinds) == 1 else None)
        object.__setattr__(self, "_index", dict(self.leaves))
        object.__setattr__(self, "_hash", hash(self.leaves))
        if len(self._index) != len(self.leaves):
            raise ValueError("a schema names a tensor twice")

    @classmethod
    def of(cls, tree: Tree) -> Schema:
        """The schema of a tree."""
        if isinstance(tree, FlatTree):
            return tree.schema
        return cls(tuple((k, Leaf(tuple(v.shape), v.dtype)) for k, v in tree.items()))

    def __getitem__(self, name: str) -> Leaf:
        return self._index[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self.leaves)

    def __hash__(self) -> int:
        return self._hash


class FlatTree(Mapping[str, Tensor]):
    """A tree over one contiguous 1-D buffer; its leaves, in schema order, are views made on demand.

    The buffer may be part of `payload`, the tree's own encoding (`fedhet.numerics.wire_format.blank`), which then costs
    no copy.
    """

    __slots__ = ("flat", "payload", "schema")

    def __init__(self, schema: Schema, flat: Tensor, payload: memoryview | None = None) -> None:
        if flat.dim() != 1 or flat.numel() != schema.size:
            raise ValueError(f"schema has {schema.size} elements, the buffer has shape {tuple(flat.shape)}")
        self.schema, self.flat, self.payload = schema, flat, payload

    def __getitem__(self, name: str) -> Tensor:
        at = 0
        for key, leaf in self.schema.leaves:
            if key == name:
                return self.flat[at : at + leaf.size].view(leaf.shape)
            at += leaf.size
        raise KeyError(name)

    def items(self) -> ItemsView[str, Tensor]:
        """Name and leaf pairs in one pass over the buffer."""
        return dict(self._pairs()).items()

    def _pairs(self) -> Iterator[tuple[str, Tensor]]:
        at = 0
        for key, leaf in self.schema.leaves:
            yield key, self.flat[at : at + leaf.size].view(leaf.shape)
            at += leaf.size

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema)

    def __len__(self) -> int:
        return len(self.schema)

    def __repr__(self) -> str:
        return f"FlatTree({len(self)} leaves, {self.flat.numel()} x {self.flat.dtype})"


def flatten(tree: Tree) -> Tree:
    """The same tree over one buffer (copied), or a plain dict of the leaves if their dtypes differ."""
    schema = Schema.of(tree)
    if schema.dtype is None:
        return dict(tree)
    if isinstance(tree, FlatTree):
        return tree
    return FlatTree(schema, torch.cat([leaf.reshape(-1) for leaf in tree.values()]))


def accumulator(kind: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: a running sum of half precision stops growing once a term is below its last bit."""
    return torch.float32 if kind in (torch.float16, torch.bfloat16) else kind


def widened(tree: Tree) -> Tree:
    """The tree in the dtype sums are kept in; `tree` itself if it is that already."""
    if isinstance(tree, FlatTree):
        return _cast(tree, accumulator(tree.flat.dtype))
    return {name: leaf.to(accumulator(leaf.dtype)) for name, leaf in tree.items()}


def rounded_like(tree: Tree, like: Tree) -> Tree:
    """The tree in the dtypes of another of its names and shapes; `tree` itself if it has them."""
    if isinstance(tree, FlatTree) and isinstance(like, FlatTree):
        return _cast(tree, like.flat.dtype)
    return {name: leaf.to(like[name].dtype) for name, leaf in tree.items()}


def _cast(tree: FlatTree, kind: torch.dtype) -> FlatTree:
    if tree.flat.dtype == kind:
        return tree
    return FlatTree(Schema(tuple((n, Leaf(leaf.shape, kind)) for n, leaf in tree.schema.leaves)), tree.flat.to(kind))


def same_layout(trees: Sequence[Tree]) -> bool:
    """Whether all are flat trees of one schema, so that their buffers line up."""
    first = trees[0]
    return isinstance(first, FlatTree) and all(
        isinstance(t, FlatTree) and (t.schema is first.schema or t.schema == first.schema) for t in trees
    )


def weighted_sum(trees: Sequence[Tree], coefficients: Sequence[float]) -> Tree:
    """sum_i coefficients[i] * trees[i], accumulated in the order given: the one aggregation kernel.

    Each term is one fused multiply-add into a float32 (or wider) accumulator, so equal inputs in equal order give
    equal bits under every schedule; leaves of half precision are rounded once, at the end. Raises ValueError if there
    is nothing to sum or the trees do not line up.
    """
    if not trees or len(trees) != len(coefficients):
        raise ValueError(f"{len(trees)} trees with {len(coefficients)} coefficients")
    if same_layout(trees):
        first = trees[0]
        assert isinstance(first, FlatTree)
        rows = [tree.flat for tree in trees]  # type: ignore[attr-defined]
        total = _room(first.flat)
        if native.sum_into(rows, coefficients, total):
            return FlatTree(first.schema, total)
        for at in range(0, len(total), PIECE):
            _sum_into(total[at : at + PIECE], [row[at : at + PIECE] for row in rows], coefficients)
        return FlatTree(first.schema, total)
    names = list(trees[0])
    if any(list(t) != names for t in trees):
        raise ValueError("trees with different names cannot be summed")
    result: dict[str, Tensor] = {}
    for name in names:
        leaf = torch.empty_like(trees[0][name])
        for tree in trees:
            if tree[name].shape != leaf.shape:
                raise ValueError(f"{name}: shapes {tuple(leaf.shape)} and {tuple(tree[name].shape)} cannot be summed")
        _sum_into(leaf, [tree[name] for tree in trees], coefficients)
        result[name] = leaf
    return result


def _sum_into(out: Tensor, rows: Sequence[Tensor], coefficients: Sequence[float]) -> None:
    """out = sum_i coefficients[i] * rows[i], rounded once where `out` is of half precision."""
    kind = accumulator(out.dtype)
    total = out.zero_() if kind == out.dtype else torch.zeros_like(out, dtype=kind)
    for row, c in zip(rows, coefficients, strict=True):
        total.add_(row, alpha=float(c))
    if total is not out:
        out.copy_(total)


def scaled(coefficients: Sequence[float], scales: Sequence[float] | None) -> list[float]:
    """coefficients[i] * scales[i]: what each of several deltas that all cover everything is multiplied by. No scales
    are ones."""
    if scales is None:
        return [float(c) for c in coefficients]
    return [float(c) * float(s) for c, s in zip(coefficients, scales, strict=True)]


def empty(schema: Schema) -> Tree:
    """A tree of one dtype with whatever is in its memory. That is used again once no leaf of it is in use."""
    kind = schema.dtype or torch.float32
    return FlatTree(schema, SHELF.empty(schema.size) if kind == torch.float32 else torch.empty(schema.size, dtype=kind))


def _room(like: Tensor) -> Tensor:
    """Memory for a result of the same kind."""
    plain = like.dtype == torch.float32 and like.device.type == "cpu"
    return SHELF.empty(len(like)) if plain else torch.empty_like(like)


def add(a: Tree, b: Tree) -> Tree:
    """a + b."""
    if same_layout([a, b]):
        left, right = a.flat, b.flat  # type: ignore[attr-defined]
        return FlatTree(a.schema, torch.add(left, right, out=_room(left)))  # type: ignore[attr-defined]
    return weighted_sum([a, b], [1.0, 1.0])


def subtract(a: Tree, b: Tree) -> Tree:
    """a - b."""
    if same_layout([a, b]):
        return FlatTree(a.schema, a.flat - b.flat)  # type: ignore[attr-defined]
    return weighted_sum([a, b], [1.0, -1.0])


def join(first: Tree, second: Tree) -> Tree:
    """The leaves of both, in this order; `first` itself if there is no second. Raises ValueError for a common name."""
    if not second:
        return first
    if set(first) & set(second):
        raise ValueError(f"both trees have {sorted(set(first) & set(second))[:3]}")
    if isinstance(first, FlatTree) and isinstance(second, FlatTree) and first.flat.dtype == second.flat.dtype:
        schema = Schema((*first.schema.leaves, *second.schema.leaves))
        return FlatTree(schema, torch.cat([first.flat, second.flat]))
    return {**first, **second}


def scale(a: Tree, factor: float) -> Tree:
    """factor * a; `a` itself when the factor is 1."""
    if factor == 1.0:
        return a
    if isinstance(a, FlatTree):
        return FlatTree(a.schema, a.flat * factor)
    return {k: v * factor for k, v in a.items()}


def zeros_like(a: Tree) -> Tree:
    """A tree of zeros with a's schema."""
    if isinstance(a, FlatTree):
        return FlatTree(a.schema, torch.zeros_like(a.flat))
    return {k: torch.zeros_like(v) for k, v in a.items()}


def gram(trees: Sequence[Tree]) -> np.ndarray:
    """All inner products in float64, shape (n, n), streamed in chunks of `inner.CHUNK` columns.

    Extra memory is one chunk of n rows. Raises ValueError if the trees do not line up.
    """
    if same_layout(trees):
        return _gram([t.flat for t in trees])  # type: ignore[attr-defined]
    names = list(trees[0])
    if any(list(t) != names for t in trees):
        raise ValueError("inner products need trees of equal names")
    total = np.zeros((len(trees), len(trees)))
    for name in names:
        total += _gram([t[name].reshape(-1) for t in trees])
    return total


def _gram(rows: Sequence[Tensor]) -> np.ndarray:
    width = rows[0].numel()
    if any(r.numel() != width for r in rows):
        raise ValueError("inner products need trees of equal size")
    total = np.zeros((len(rows), len(rows)))
    for part in inner.partials(rows, width, lambda line, row: torch.from_numpy(line).copy_(row)):
        total += part
    return total


def squared_norm(tree: Tree) -> float:
    """Sum of squares, float32 (or wider) chunks accumulated in float64. Not finite if any element is not finite."""
    total = 0.0
    for leaf in [tree.flat] if isinstance(tree, FlatTree) else tree.values():
        row = leaf.reshape(-1)
        if not row.is_floating_point():
            row = row.to(torch.float64)
        for at in range(0, row.numel(), 1 << 20):
            part = row[at : at + (1 << 20)]
            part = part.to(accumulator(part.dtype))  # the square of 300 is no float16
            total += float(torch.dot(part, part))
    return total
