"""Benchmarks of combining updates and decoding payloads, compared with reading the same bytes once and with Flower.

The lower bound of a weighted sum is one pass over every update (`torch.sum` of each). Flower's `aggregate_arrayrecords`
gets the same numbers in the records that its strategies receive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedhet.bench.turns import Cost, in_turns
from fedhet.flower.compat import aggregate_arrayrecords
from fedhet.numerics import tree, wire_format
from fedhet.numerics.tree import FlatTree, Leaf, Schema

READ, OURS, TORCH, FLOWER = "reading every update once", "fedhet", "torch, one by one", "Flower"
LAYERS = 20
"""Tensors of the benchmark's model."""


def schema(d: int) -> Schema:
    """A model of d numbers in `LAYERS` tensors."""
    cuts = [d * i // LAYERS for i in range(LAYERS + 1)]
    return Schema(tuple((f"layer{i}", Leaf((b - a,))) for i, (a, b) in enumerate(pairwise(cuts))))


def updates(n: int, d: int) -> list[FlatTree]:
    """n updates of d float32 numbers, each in its own memory."""
    shape, first = schema(d), torch.randn(d, generator=torch.Generator().manual_seed(0))
    return [FlatTree(shape, first * (1 + 0.1 * i)) for i in range(n)]


def weighted_sum(n: int, d: int, repeats: int, threads: int, flower: bool = True) -> dict[str, Cost]:
    """Cost of a weighted mean of n updates of d numbers, by system."""
    trees = updates(n, d)
    weights = [1.0 + i for i in range(n)]
    shares = [w / sum(weights) for w in weights]

    def one_by_one() -> torch.Tensor:
        total = torch.zeros(d)
        for one, share in zip(trees, shares, strict=True):
            total.add_(one.flat, alpha=share)
        return total

    systems: dict[str, Callable[[], Any]] = {
        READ: lambda: [one.flat.sum() for one in trees],
        OURS: lambda: tree.weighted_sum(trees, shares),
        TORCH: one_by_one,
    }
    if flower:
        records = [_reply(one, weight) for one, weight in zip(trees, weights, strict=True)]
        systems[FLOWER] = lambda: aggregate_arrayrecords(records, "num-examples")
    return with_threads(threads, systems, repeats)


def opening(d: int, repeats: int) -> dict[str, Cost]:
    """Cost of decoding a payload of d float32 numbers to tensors: fedhet's format, and Flower's records."""
    one = updates(1, d)[0]
    payload, expects = wire_format.encode(one), one.schema
    record = _record(one)
    return with_threads(
        1,
        {
            READ: lambda: one.flat.sum(),
            OURS: lambda: wire_format.decode(payload, expects),
            FLOWER: lambda: record.to_torch_state_dict(),
        },
        repeats,
    )


def _record(one: FlatTree) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(one[name].numpy())) for name in one})


def _reply(one: FlatTree, weight: float) -> RecordDict:
    return RecordDict({"arrays": _record(one), "metrics": MetricRecord({"num-examples": weight})})


def with_threads(threads: int, systems: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Cost]:
    """`in_turns` with a number of torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return in_turns(systems, repeats)
    finally:
        torch.set_num_threads(before)
