"""A world with a known answer, for tests of plug-ins: quadratic clients, exact gradients, no data set.

Client i minimises f_i(x) = a_i/2 * ||x - b_i||^2 in float64, so the optimum of sum_i p_i f_i is
sum p_i a_i b_i / sum p_i a_i, and every local step is known in closed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedhet.build import Scores
from fedhet.model import Model
from fedhet.profile import Profile
from fedhet.roster import Clients
from fedhet.streams import stream
from fedhet.types import ClientId


class Point(nn.Module):
    """One parameter vector; the output for any input is the vector itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.x


def quadratic_loss(x: Tensor, rows: Tensor) -> Tensor:
    """Mean over rows (a, b_1, ..., b_dim) of a/2 ||x - b||^2."""
    return (0.5 * rows[:, 0] * ((x - rows[:, 1:]) ** 2).sum(1)).mean()


def quadratic_model(dim: int = 1) -> Model:
    """A Model over one point, started at zero."""
    return Model(Point(dim), quadratic_loss)


@dataclass(frozen=True)
class QuadraticShard:
    """A client's `samples` equal rows: every mini-batch has the exact gradient."""

    row: Tensor
    samples: int
    key: tuple[int, int, int]

    def __len__(self) -> int:
        return self.samples

    def whole(self) -> tuple[Tensor, Tensor]:
        return self.row[None], self.row[None]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.whole()

    def rng(self, purpose: str) -> np.random.Generator:
        return stream(self.key[0], purpose, *self.key[1:])


class QuadraticWorld:
    """`curvature` a (clients,), `optima` b (clients,) or (clients, dim), `samples` per client. "accuracy" is
    1 / (1 + distance to the optimum of the weighted sum)."""

    def __init__(
        self, curvature: Sequence[float], optima: Any, samples: Sequence[int] | None = None, seed: int = 0
    ) -> None:
        self._a = np.asarray(curvature, dtype=np.float64)
        self._b = np.asarray(optima, dtype=np.float64).reshape(len(self._a), -1)
        self.clients, self._seed = len(self._a), seed
        self._samples = np.asarray(samples if samples is not None else [10] * self.clients, dtype=np.int64)
        p = self._samples / self._samples.sum()
        self.optimum = (p * self._a) @ self._b / (p @ self._a)

    def examples(self) -> np.ndarray:
        return self._samples

    def model(self) -> Model:
        return quadratic_model(self._b.shape[1])

    def shard(self, client: ClientId, turn: int) -> QuadraticShard:
        row = torch.tensor([self._a[client], *self._b[client]], dtype=torch.float64)
        return QuadraticShard(row, int(self._samples[client]), (self._seed, client, turn))

    def evaluate(self, model: Model) -> Scores:
        gap = float(np.linalg.norm(model.params.numpy() - self.optimum))
        return Scores(1 / (1 + gap), gap, np.full(self.clients, 1 / (1 + gap)))

    def flops(self) -> float:
        return 1.0

    def describe(self) -> Mapping[str, Any]:
        return {"data": "quadratic"}


def equal_clients(world: QuadraticWorld, **profile: Any) -> Clients:
    """A fleet without jitter or network for a world; `profile` overrides fields of everybody."""
    given = {"sec_per_step": 1.0, **profile}
    return Clients.from_columns(world.clients, given).with_examples(world.examples())
