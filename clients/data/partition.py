"""Who holds what: for every client the indices of its training samples, stored as one array with offsets.

An index array costs 4 bytes a sample, whatever the number of clients. Every method is reproducible by its seed, keeps
samples disjoint unless it says otherwise, and uses all of them unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clients.data.dataset import DataError, Dataset
from fedhet.streams import stream


class Partition:
    """Indices per client in CSR form, and what follows from them.

    `own_test` (CSR over test samples) is set for natural partitions; otherwise a client's test accuracy is the accuracy
    per class weighted by its own label mix, which is exact in expectation and costs one pass over the test set.
    """

    def __init__(
        self,
        dataset: Dataset,
        index: np.ndarray,
        offsets: np.ndarray,
        own_test: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.dataset, self.index, self.offsets, self.own_test = dataset, index.astype(np.int32), offsets, own_test

    @classmethod
    def of(cls, dataset: Dataset, parts: list[np.ndarray], own_test: list[np.ndarray] | None = None) -> Partition:
        """From one index array per client. Raises DataError if a client has nothing."""
        for client, part in enumerate(parts):
            if len(part) == 0:
                raise DataError(
                    f"client {client} of {len(parts)} has no sample: use fewer clients or a milder partition"
                )
        return cls(dataset, *_csr(parts), None if own_test is None else _csr(own_test))

    @property
    def clients(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> np.ndarray:
        """Training samples per client, int64 (clients,)."""
        return np.diff(self.offsets)

    def indices(self, client: int) -> np.ndarray:
        """Training samples of one client, int32."""
        return self.index[self.offsets[client] : self.offsets[client + 1]]

    @cached_property
    def histogram(self) -> np.ndarray:
        """Samples per client and class, int64 (clients, classes)."""
        owner = np.repeat(np.arange(self.clients), self.counts)
        flat = owner * self.dataset.classes + self.dataset.labels[self.index]
        return np.bincount(flat, minlength=self.clients * self.dataset.classes).reshape(self.clients, -1)

    def client_accuracy(self, right: np.ndarray) -> np.ndarray:
        """Accuracy each client would see, (clients,), from the share right of each test sample, (n_test,). NaN where a
        client of a natural partition has no test data."""
        if self.own_test is not None:
            index, offsets = self.own_test
            sizes = np.diff(offsets)
            sums = np.zeros(len(sizes))
            np.add.at(sums, np.repeat(np.arange(len(sizes)), sizes), right[index])
            own: np.ndarray = np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
            return own
        if self.dataset.y_test.dim() != 1:  # sequences cut without owners: everybody sees the same
            return np.full(self.clients, right.mean())
        labels = self.dataset.y_test.numpy()
        seen = np.bincount(labels, minlength=self.dataset.classes)
        hits = np.bincount(labels, right, self.dataset.classes)
        per_class = np.divide(hits, seen, out=np.zeros(len(seen)), where=seen > 0)
        mix = self.histogram * (seen > 0)
        expected: np.ndarray = (mix @ per_class) / np.maximum(mix.sum(1), 1)
        return expected


def _csr(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(p) for p in parts], out=offsets[1:])
    return np.concatenate(parts) if parts else np.empty(0, np.int64), offsets


class Replicated(Partition):
    """Every client's samples are drawn, with replacement among clients, when it is asked for: nothing is stored."""

    def __init__(self, dataset: Dataset, clients: int, per_client: int, seed: int) -> None:
        super().__init__(dataset, np.empty(0, np.int32), np.zeros(1, np.int64))
        self._clients, self._per_client, self._seed = clients, per_client, seed

    @property
    def clients(self) -> int:
        return self._clients

    @cached_property
    def counts(self) -> np.ndarray:
        return np.broadcast_to(np.int64(self._per_client), (self._clients,))

    def indices(self, client: int) -> np.ndarray:
        draw = stream(self._seed, "replicated", client)
        return np.sort(draw.integers(len(self.dataset.x_train), size=self._per_client)).astype(np.int32)

    def client_accuracy(self, right: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.float64(right.mean()), (self._clients,))


def enough(dataset: Dataset, clients: int) -> int:
    """Number of training samples. Raises DataError if there are more clients than samples."""
    size = len(dataset.x_train)
    if not 1 <= clients <= size:
        raise DataError(f"{clients} clients cannot share {size} samples: set fleet.clients to at most {size}")
    return size


def by_class(labels: np.ndarray, classes: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled indices of each class."""
    return [rng.permutation(np.flatnonzero(labels == c)) for c in range(classes)]


def cut(pool: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """Cut an array at floor(cumulative shares * length); the last part takes the remainder."""
    ends = np.floor(np.cumsum(shares)[:-1] * len(pool) + 1e-9).astype(np.int64)
    return np.split(pool, np.clip(ends, 0, len(pool)))


def merge(pieces: list[list[np.ndarray]], clients: int) -> list[np.ndarray]:
    """Each client's pieces from all classes, ascending."""
    return [np.sort(np.concatenate([row[c] for row in pieces])) for c in range(clients)]


def positive(name: str, value: float) -> None:
    """Raises DataError unless the value is a positive finite number."""
    if not 0 < value < np.inf:
        raise DataError(f"{name}={value} must be a positive number")


@dataclass(frozen=True)
class Iid:
    """Shuffle and deal evenly; sizes differ by at most one."""

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        order = stream(seed, "iid").permutation(enough(dataset, clients))
        return Partition.of(dataset, [np.sort(p) for p in np.array_split(order, clients)])


@dataclass(frozen=True)
class PerClient:
    """`per_client` samples each, drawn on demand and shared among clients: for fleets larger than the data."""

    per_client: int = 60

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        positive("per_client", self.per_client)
        return Replicated(dataset, clients, self.per_client, seed)
