"""Adapters that begin with the best part of the server's product a client's rank can hold, and bring back its change.

The server keeps T as compressed factors, largest singular value first. A device starts from the first r columns and
rows; a rank beyond T's own begins fresh. What comes back is the device's product in the end; the server knows where the
device started and completes the update to end - start, a product of rank at most 2 r.
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
"""Of a difference that cancels in 32-bit factors: what is smaller than this share of its parts is not kept."""


def begin_cut(space: AbstractLora, panel: Panel, starts: Mapping[str, Pair], job: Job) -> None:
    """A device's adapters from products of at most its rank; rows beyond them are drawn, the same for all jobs of a
    version."""
    shapes = {n: (int(f[A].shape[0]), f[A].shape[1:].numel()) for n, f in panel.factors.items()}
    panel.starts = dict(starts)
    fill(panel, starts, space.draw(shapes, job.version), even=True)


def bring_ends(panel: Panel) -> dict[str, Tensor]:
    """The products in the end, s on A."""
    brought: dict[str, Tensor] = {}
    for name, pair in ends(panel, scaling_on=A).items():
        brought[f"{name}.{A}"], brought[f"{name}.{B}"] = pair.right, pair.left
    return brought


def starts_of(space: AbstractLora, state: Mapping[str, Tensor], job: Job) -> dict[str, Pair]:
    """What a job's device starts from: the first part of the state's products."""
    shapes, rank = shapes_of(state), space.rank_of(job)
    return {n: cut(p, space.rank_at(n, shapes[n], rank)) for n, p in factors_of(state).items()}


def difference(end: Pair, start: Pair) -> Pair:
    """end - start, side by side."""
    return stack([end, start], [1.0, -1.0])


def empty(shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Pair]:
    """Products of rank 0."""
    return {n: Pair(torch.zeros((s.d, 0), dtype=kind), torch.zeros((0, s.k), dtype=kind)) for n, s in shapes.items()}


def summed(products: Mapping[str, Pair], steps: Mapping[str, Pair], most: int | None = None) -> dict[str, Pair]:
    """products + steps in compressed form, of rank `most` at most; what is left of parts that cancel is dropped."""
    floor = {n: ROUNDING * (norm(products[n]) if products[n].left.dtype != torch.float64 else 0.0) for n in steps}
    return {
        n: compress(stack([products[n], step], [1.0, 1.0]), rank=most, floor=floor[n])[0] for n, step in steps.items()
    }
