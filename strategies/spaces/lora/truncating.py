"""Adapters that start from the best approximation, of a client's rank, of the server's product T.

The server stores T as compressed factors, largest singular value first. A device starts from the first r columns and
rows; rows beyond the rank of T are drawn. The update is the device's final product; the server knows its start and
computes end - start, a product of rank at most 2 r.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhet.types import Job
from strategies.spaces.lora.base import AbstractLora, shapes_of
from strategies.spaces.lora.factors import Pair, compress, norm, stack
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import A, B
from strategies.spaces.lora.warm import cut, ends, factors_of, fill

ROUNDING = 2.0**-21
"""Relative size below which a difference of float32 factors counts as rounding error and is dropped."""


def fill_truncated(space: AbstractLora, panel: Panel, starts: Mapping[str, Pair], job: Job) -> None:
    """Fill a device's adapters with products of at most its rank; further rows are drawn, the same for all jobs of a
    version."""
    shapes = {n: (int(f[A].shape[0]), f[A].shape[1:].numel()) for n, f in panel.factors.items()}
    panel.starts = dict(starts)
    fill(panel, starts, space.draw(shapes, job.version), even=True)


def final_products(panel: Panel) -> dict[str, Tensor]:
    """The final products, with s folded into A."""
    factors: dict[str, Tensor] = {}
    for name, pair in ends(panel, scaling_on=A).items():
        factors[f"{name}.{A}"], factors[f"{name}.{B}"] = pair.right, pair.left
    return factors


def starts_of(space: AbstractLora, state: Mapping[str, Tensor], job: Job) -> dict[str, Pair]:
    """The products from which a job's device starts: the state's, truncated to its rank."""
    shapes, rank = shapes_of(state), space.rank_of(job)
    return {n: cut(p, space.rank_at(n, shapes[n], rank)) for n, p in factors_of(state).items()}


def difference(end: Pair, start: Pair) -> Pair:
    """end - start, with concatenated factors."""
    return stack([end, start], [1.0, -1.0])


def empty(shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Pair]:
    """Products of rank 0."""
    return {n: Pair(torch.zeros((s.d, 0), dtype=kind), torch.zeros((0, s.k), dtype=kind)) for n, s in shapes.items()}


def summed(products: Mapping[str, Pair], steps: Mapping[str, Pair], most: int | None = None) -> dict[str, Pair]:
    """products + steps in compressed form, of rank at most `most`; rounding errors of cancelled parts are dropped."""
    floor = {n: ROUNDING * (norm(products[n]) if products[n].left.dtype != torch.float64 else 0.0) for n in steps}
    return {
        n: compress(stack([products[n], step], [1.0, 1.0]), rank=most, floor=floor[n])[0] for n, step in steps.items()
    }
