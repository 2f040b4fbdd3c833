"""A shard: one client's samples in one job, with the job's random streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedhet.numerics.rng import stream
from fedhet.types import IndexedBatches

FIRST, FETCH = 1 << 18, 1 << 21
"""Bytes of samples fetched at once, about: at first, and at most."""


class ClientShard:
    """The samples `index` of a data set: x (n, *input_shape), y (n,) or (n, length). Nothing is copied before a batch.

    Batches depend on (seed, client, turn) and on the batch size, so a client's k-th job sees the same ones under every
    schedule, in whatever process it runs.
    """

    def __init__(self, x: Tensor, y: Tensor, index: np.ndarray, seed: int, client: int, turn: int) -> None:
        self._x, self._y, self._index = x, y, torch.from_numpy(index.astype(np.int64))
        self._key = (seed, client, turn)
        self._sample = max(1, x[0].nbytes) if len(x) else 1

    def __len__(self) -> int:
        return len(self._index)

    def all_samples(self) -> tuple[Tensor, Tensor]:
        return self._x.index_select(0, self._index), self._y.index_select(0, self._index)

    def rng(self, purpose: str) -> np.random.Generator:
        seed, client, turn = self._key
        return stream(seed, purpose, client, turn)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Epochs without end, each in a new order. Raises ValueError if there is nothing to draw or size is under 1."""
        self._check(size)
        return self._epochs(size)

    def pick(self, size: int, count: int) -> IndexedBatches:
        """The first `count` of `batches(size)`, uncopied. Raises ValueError as that does."""
        self._check(size)
        rng, n = self.rng("batches"), len(self)
        epoch = [min(size, n - at) for at in range(0, n, size)]
        epochs = -(-count // len(epoch))
        orders = [self._index.index_select(0, torch.from_numpy(rng.permutation(n))) for _ in range(epochs)]
        sizes = (epoch * epochs)[:count]
        order = orders[0] if epochs == 1 else torch.cat(orders)
        return IndexedBatches(self._x, self._y, order[: sum(sizes)], sizes)

    def _check(self, size: int) -> None:
        if size < 1 or len(self) == 0:
            raise ValueError(f"batches of {size} out of {len(self)} samples: both must be at least 1")

    def _epochs(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = self.rng("batches")
        while True:
            order = self._index.index_select(0, torch.from_numpy(rng.permutation(len(self))))
            # Samples are fetched for several batches at once, where a step takes microseconds: a few at first, for jobs
            # of few steps, and twice as many each time, up to a bound in bytes.
            first, most = (size * max(1, bound // (size * self._sample)) for bound in (FIRST, FETCH))
            at, ahead = 0, first
            while at < len(order):
                part = order[at : at + ahead]
                at += ahead
                ahead = min(2 * ahead, most)
                # index_select needs less than half the time of x[part]
                x, y = self._x.index_select(0, part), self._y.index_select(0, part)
                yield from zip(torch.split(x, size), torch.split(y, size), strict=True)
