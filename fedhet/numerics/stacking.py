"""Matrices side by side or on top of each other, each times its own scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedhet import native


def stack(parts: Sequence[Tensor], out: Tensor, scales: Sequence[float] | None = None, *, dim: int) -> Tensor:
    """`out`, filled with matrices on top of each other (`dim` 0) or side by side (1), each times its scale.

    Parts have `out`'s dtype, and its extent along the other dimension; together they have its extent along `dim`.
    Every number is one product at most, so the bits are the same by `fedhet.native` and by torch. Raises ValueError if
    parts and scales do not fit.
    """
    shapes, whole = [p.shape for p in parts], out.shape
    widths = [shape[dim] for shape in shapes]
    fits = all(len(shape) == 2 and shape[1 - dim] == whole[1 - dim] for shape in shapes)
    if not fits or sum(widths) != whole[dim] or any(p.dtype != out.dtype for p in parts):
        raise ValueError(f"{[tuple(shape) for shape in shapes]} along {dim} do not make up {tuple(whole)}")
    if scales is not None and len(scales) != len(parts):
        raise ValueError(f"{len(parts)} parts with {len(scales)} scales")
    if native.stack_into(parts, out, scales, dim=dim):
        return out
    if scales is None:
        torch.cat(list(parts), dim, out=out)
    else:
        for part, place, scale in zip(parts, torch.split(out, widths, dim), scales, strict=True):
            torch.mul(part, float(scale), out=place)
    return out
