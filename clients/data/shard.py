"""One client's samples as one job sees them, with the job's own random streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedhet.streams import stream


class ClientShard:
    """The samples `index` of a data set. Batches depend on (seed, client, turn) and nothing else."""

    def __init__(self, x: Tensor, y: Tensor, index: np.ndarray, seed: int, client: int, turn: int) -> None:
        self._x, self._y, self._index = x, y, torch.from_numpy(index.astype(np.int64))
        self._key = (seed, client, turn)

    def __len__(self) -> int:
        return len(self._index)

    def whole(self) -> tuple[Tensor, Tensor]:
        return self._x[self._index], self._y[self._index]

    def rng(self, purpose: str) -> np.random.Generator:
        seed, client, turn = self._key
        return stream(seed, purpose, client, turn)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng, count = self.rng("batches"), len(self._index)
        while True:
            order = self._index[torch.from_numpy(rng.permutation(count))]
            for at in range(0, count, size):
                part = order[at : at + size]
                yield self._x[part], self._y[part]
