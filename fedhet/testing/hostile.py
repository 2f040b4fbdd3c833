"""Payloads of a faulty or malicious client: extreme values in the expected format, and malformed ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedhet.numerics import wire_format
from fedhet.numerics.tree import Leaf, Schema
from fedhet.types import Tree

LONGEST = 1e14
"""A norm below the gate's limit (max_norm)."""


def fitting(schema: Schema) -> Iterator[tuple[str, Tree]]:
    """(description, tree of exactly this schema), with extreme values that pass the gate."""
    rng = np.random.default_rng(0)

    def filled(kind: str) -> dict[str, Tensor]:
        return {name: _leaf(leaf, kind, rng, schema.size) for name, leaf in schema.items()}

    for kind in ("zeros", "large", "negative", "random"):
        yield f"a payload of {kind} numbers" if kind != "zeros" else "a payload of zeros", filled(kind)


def _leaf(leaf: Leaf, kind: str, rng: np.random.Generator, size: int) -> Tensor:
    if kind == "zeros":
        return torch.zeros(leaf.shape, dtype=leaf.dtype)
    if leaf.dtype.is_floating_point:
        most = min(LONGEST, torch.finfo(leaf.dtype).max / 4) / max(1, size)
        value = {"large": most, "negative": -most}.get(kind)
        numbers = rng.normal(size=leaf.shape) if value is None else np.full(leaf.shape, value)
        return torch.from_numpy(np.asarray(numbers)).to(leaf.dtype)
    if leaf.dtype == torch.bool:
        return torch.ones(leaf.shape, dtype=leaf.dtype)
    info = torch.iinfo(leaf.dtype)
    value = {"large": info.max, "negative": info.min}.get(kind)
    if value is not None:
        return torch.full(leaf.shape, value, dtype=leaf.dtype)
    return torch.from_numpy(rng.integers(info.min, info.max, leaf.shape, dtype=np.int64)).to(leaf.dtype)


def misfitting(delta: Tree) -> Iterator[tuple[str, bytes]]:
    """(description, payload) made from an honest delta, all of which must be rejected."""
    honest = {name: leaf.clone() for name, leaf in delta.items()}
    first = next(name for name, leaf in honest.items() if leaf.dtype.is_floating_point and leaf.numel())

    def packed(**changed: Tensor) -> bytes:
        return bytes(wire_format.encode({**honest, **changed}))

    def at(value: float) -> bytes:
        leaf = honest[first].clone()
        leaf.view(-1)[0] = value
        return packed(**{first: leaf})

    yield "NaN", at(float("nan"))
    yield "infinity", at(float("inf"))
    yield "minus infinity", at(-float("inf"))
    yield "another shape", packed(**{first: torch.zeros(*honest[first].shape, 2, dtype=honest[first].dtype)})
    wider = torch.float32 if honest[first].dtype == torch.float64 else torch.float64
    yield "another dtype", packed(**{first: honest[first].to(wider)})
    yield "one leaf more", packed(unheard_of=torch.zeros(1))
    yield "a thousand leaves more", packed(**{f"leaf{k}": torch.zeros(1) for k in range(1000)})
    yield "one leaf less", bytes(wire_format.encode({k: v for k, v in honest.items() if k != first}))
    yield "another name", bytes(wire_format.encode({(k if k != first else "../" + k): v for k, v in honest.items()}))
    whole = packed()
    yield "half of its bytes", whole[: len(whole) // 2]
    yield "bytes behind its end", whole + b"\0" * 64
    yield "nothing", b""
    yield "a header that claims 2^60 numbers", _huge(first)
    yield "noise", bytes(itertools.islice(itertools.cycle(range(1, 256)), len(whole)))


def _huge(name: str) -> bytes:
    return wire_format.header(Schema(((name, Leaf((1 << 30, 1 << 30))),)))
