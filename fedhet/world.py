"""What is learned from: data divided among clients, models that fit it, and how good a model is on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from fedhet.model.flat_model import Model
from fedhet.protocols import Shard
from fedhet.types import ClientId


@dataclass(frozen=True, slots=True)
class Scores:
    """One evaluation of one model: shares in [0, 1], loss in nats, `clients` the accuracy each client would see."""

    accuracy: float
    loss: float
    clients: np.ndarray

    def without(self, absent: Collection[int]) -> Scores:
        """The same with nothing known of these clients."""
        if not absent:
            return self
        clients = np.array(self.clients, dtype=np.float64)
        clients[sorted(absent)] = np.nan
        return replace(self, clients=clients)

    @property
    def worst_decile(self) -> float:
        """Mean accuracy of the worst tenth of the clients that have test data (at least one client)."""
        known = np.sort(self.clients[np.isfinite(self.clients)])
        return float(known[: max(1, len(known) // 10)].mean()) if len(known) else float("nan")


class World(Protocol):
    """Data, its partition, and models that fit it."""

    @property
    def clients(self) -> int:
        """Number of clients that the data are divided among."""
        ...

    def examples(self) -> np.ndarray:
        """Training samples per client, int64 (clients,)."""
        ...

    def model(self) -> Model: ...
    def shard(self, client: ClientId, turn: int) -> Shard: ...
    def evaluate(self, model: Model) -> Scores: ...
    def flops(self) -> float:
        """Forward floating-point operations per sample."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What is known of the data by name; under "notices", what whoever runs it should hear."""
        ...
