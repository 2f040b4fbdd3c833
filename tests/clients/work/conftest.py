"""A small network on synthetic data in float64: three clients with ordered batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedhet.model.flat_model import Model
from fedhet.numerics.rng import stream
from fedhet.types import Budget, Job


class OrderedShard:
    """Samples in storage order, again and again."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def all_samples(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for at in range(0, len(self), size):
                yield self.x[at : at + size], self.y[at : at + size]

    def rng(self, purpose: str) -> np.random.Generator:
        return stream(0, purpose)


class NetWorld:
    """Three clients with 24 samples of 6 features and 3 classes."""

    clients = 3

    def __init__(self, norm: bool = False) -> None:
        self.norm = norm

    def examples(self) -> np.ndarray:
        return np.full(self.clients, 24)

    def module(self) -> nn.Module:
        torch.manual_seed(3)
        middle = [nn.BatchNorm1d(5)] if self.norm else []
        return nn.Sequential(nn.Linear(6, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()

    def model(self) -> Model:
        return Model(self.module())

    def shard(self, client: int, turn: int) -> OrderedShard:
        torch.manual_seed(100 + client)
        return OrderedShard(torch.randn(24, 6, dtype=torch.float64) + client, torch.randint(0, 3, (24,)))


@pytest.fixture(scope="session")
def net_world() -> Callable[..., NetWorld]:
    return NetWorld


@pytest.fixture(scope="session")
def a_job() -> Callable[..., Job]:
    def make(steps: int, version: int = 0) -> Job:
        return Job(0, 0, version, 0, Budget(steps), 0.0)

    return make
