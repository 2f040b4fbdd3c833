"""A partition: the client of every training sample, stored as index arrays of 4 bytes per sample.

A partitioner computes one array, the owner of each sample, so that no sample has two owners. Where there are more
clients than samples, clients share samples (`Drawn`), and no index is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from clients.data.dataset import DataError, Dataset
from fedhet.numerics.rng import stream

NOBODY = -1
"""Owner of a sample that no client uses."""

BLOCK = 4096
"""Clients whose labels are counted at a time."""


class Samples(Protocol):
    """The samples of each of a number of clients."""

    @property
    def alike(self) -> bool:
        """Whether all clients draw from the full data set, so that they differ by chance only."""
        ...

    @property
    def counts(self) -> np.ndarray:
        """Samples per client, int64 (clients,)."""
        ...

    def __len__(self) -> int:
        """Number of clients."""
        ...

    def __getitem__(self, client: int, /) -> np.ndarray:
        """Sample numbers of one client, ascending."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """`index` has all clients' sample numbers one client after another; client i's start at offsets[i]."""

    index: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, owner: np.ndarray, clients: int) -> Stored:
        """From the owner of each sample, (samples,), with `NOBODY` for samples left out."""
        used = np.flatnonzero(owner != NOBODY)
        order = np.argsort(owner[used], kind="stable")
        offsets = np.zeros(clients + 1, np.int64)
        np.cumsum(np.bincount(owner[used], minlength=clients), out=offsets[1:])
        return cls(used[order].astype(np.int32 if len(owner) < 1 << 31 else np.int64), offsets)

    @property
    def alike(self) -> bool:
        return False

    @cached_property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int, /) -> np.ndarray:
        return self.index[self.offsets[client] : self.offsets[client + 1]]


@dataclass(frozen=True)
class Drawn:
    """`each` samples per client out of `size`, uniform with replacement, drawn again whenever they are asked for."""

    clients: int
    each: int
    size: int
    seed: int

    @property
    def alike(self) -> bool:
        return True

    @property
    def counts(self) -> np.ndarray:
        return np.broadcast_to(np.int64(self.each), (self.clients,))

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int, /) -> np.ndarray:
        draw = stream(self.seed, "replicated", client).integers(self.size, size=self.each)
        return np.sort(draw).astype(np.int32 if self.size < 1 << 31 else np.int64)


@dataclass(frozen=True, eq=False)
class Partition:
    """A data set and each client's part of it.

    `test` is set if test samples have owners as well. Otherwise a client's accuracy is the mean of the class accuracies
    weighted by the client's label distribution: the expectation on data like its own, from one pass over the test set.
    `notice` is a message for the user about the partition.
    """

    dataset: Dataset
    train: Samples
    test: Stored | None = None
    notice: str = ""

    @classmethod
    def of(cls, dataset: Dataset, owner: np.ndarray, clients: int, owner_test: np.ndarray | None = None) -> Partition:
        """From the owner of each training sample (and test sample). Raises DataError if a client has no sample."""
        train = Stored.of(owner, clients)
        empty = np.flatnonzero(train.counts == 0)
        if len(empty):
            raise DataError(
                f"{len(empty)} of {clients} clients have no sample (the first is {empty[0]}): use fewer clients or a "
                "milder partition"
            )
        return cls(dataset, train, None if owner_test is None else Stored.of(owner_test, clients))

    @property
    def clients(self) -> int:
        return len(self.train)

    @property
    def counts(self) -> np.ndarray:
        """Training samples per client, int64 (clients,)."""
        return self.train.counts

    def indices(self, client: int) -> np.ndarray:
        """Training samples of one client, ascending."""
        return self.train[client]

    def labels(self, clients: Sequence[int]) -> np.ndarray:
        """Training samples of these clients per class, int64 (len(clients), classes).

        Raises DataError for data without one label per sample.
        """
        labels, classes, rows = self.dataset.labels, self.dataset.classes, []
        for at in range(0, len(clients), BLOCK):
            parts = [self.train[c] for c in clients[at : at + BLOCK]]
            row = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
            flat = row * classes + labels[np.concatenate(parts)]
            rows.append(np.bincount(flat, minlength=len(parts) * classes).reshape(len(parts), classes))
        return np.concatenate(rows)

    @cached_property
    def histogram(self) -> np.ndarray:
        """Training samples per client and class, int64 (clients, classes)."""
        return self.labels(range(self.clients))

    def client_accuracy(self, right: np.ndarray) -> np.ndarray:
        """Expected accuracy of each client, (clients,), from the correct share of each test sample, (n_test,).

        NaN for a client without test samples of its own, or without classes in the test set.
        """
        if self.test is not None:
            return _ratio(np.add.reduceat(np.append(right[self.test.index], 0.0), self.test.offsets[:-1]),
                          self.test.counts)  # fmt: skip
        if self.train.alike or not self.dataset.labelled:  # the same expectation for all clients
            return np.broadcast_to(np.float64(right.mean()), (self.clients,))
        seen, mix = self._mix
        hits = np.bincount(self.dataset.y_test.numpy(), right, self.dataset.classes)
        known: np.ndarray = mix @ _ratio(hits, seen, 0.0)
        return known

    @cached_property
    def _mix(self) -> tuple[np.ndarray, np.ndarray]:
        """Test samples per class, and each client's shares of the classes that have some (NaN if it has none)."""
        seen = np.bincount(self.dataset.y_test.numpy(), minlength=self.dataset.classes)
        mix = self.histogram * (seen > 0)
        return seen, _ratio(mix, mix.sum(1, keepdims=True))


def _ratio(part: np.ndarray, whole: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """part / whole, and `otherwise` where whole is 0."""
    out = np.full(np.broadcast_shapes(part.shape, whole.shape), otherwise)
    ratio: np.ndarray = np.divide(part, whole, out=out, where=whole > 0)
    return ratio
