"""Batches for modules with batch statistics: never one sample where there are more.

The variance of one sample is zero or unknown, and torch refuses to train batch normalisation on it. Where an epoch
would end with a batch of one, that sample joins the batch before; no sample is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedhet.protocols import Shard


@dataclass(frozen=True)
class Joined:
    """A shard whose epochs do not end with a batch of one, if batches are larger and it has more samples than one."""

    shard: Shard

    def __len__(self) -> int:
        return len(self.shard)

    def all_samples(self) -> tuple[Tensor, Tensor]:
        return self.shard.all_samples()

    def rng(self, purpose: str) -> np.random.Generator:
        return self.shard.rng(purpose)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        plain = self.shard.batches(size)
        return _joined(plain) if 1 < size < len(self) and len(self) % size == 1 else plain


def _joined(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    held = next(batches)
    for x, y in batches:
        if len(y) == 1:
            held = torch.cat([held[0], x]), torch.cat([held[1], y])
        else:
            yield held
            held = x, y
    yield held
