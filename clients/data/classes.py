"""Label skew by who owns which classes, and natural owners.

Shards: McMahan et al., arXiv:1602.05629, section 3. Class partition: FedCompass, arXiv:2309.14675, experiments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.partition import Partition, by_class, cut, enough, merge
from fedhet.streams import stream

OWNED = {1: (10, 10), 2: (7, 8), 3: (6, 8), 4: (5, 7), 5: (5, 6), 6: (4, 6), 7: (4, 5)}
"""Least and most classes per client by number of clients; 8 and more: (3, 5)."""


def _classes(name: str, value: int, dataset: Dataset) -> None:
    if not 1 <= value <= dataset.classes:
        raise DataError(f"{name}={value} must be between 1 and the {dataset.classes} classes of {dataset.name}")


@dataclass(frozen=True)
class Shards:
    """Sort by label, cut into clients * per_client equal shards, deal `per_client` random ones to each."""

    per_client: int = 2

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        size = enough(dataset, clients)
        if self.per_client < 1 or clients * self.per_client > size:
            raise DataError(f"per_client={self.per_client} shards for {clients} clients do not fit {size} samples")
        rng = stream(seed, "shards")
        order = rng.permutation(size)
        order = order[np.argsort(dataset.labels[order], kind="stable")]
        shards = np.array_split(order, clients * self.per_client)
        dealt = rng.permutation(len(shards)).reshape(clients, self.per_client)
        return Partition.of(dataset, [np.sort(np.concatenate([shards[s] for s in row])) for row in dealt])


@dataclass(frozen=True)
class Pathological:
    """`classes_per_client` classes each, every class owned, its samples divided evenly among its owners."""

    classes_per_client: int = 2

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        enough(dataset, clients)
        k = self.classes_per_client
        _classes("classes_per_client", k, dataset)
        if k * clients < dataset.classes:
            raise DataError(
                f"{clients} clients with {k} classes leave some of {dataset.classes} classes without an owner"
            )
        rng = stream(seed, "pathological")
        # client i owns classes i*k .. i*k+k-1 of an endlessly repeated random order: all are used equally often
        order = rng.permutation(dataset.classes)
        owned = [{int(order[(i * k + j) % dataset.classes]) for j in range(k)} for i in range(clients)]
        return _divide(dataset, owned, rng, lambda owners: np.full(owners, 1.0 / owners))


@dataclass(frozen=True)
class LabelQuantity:
    """Client i surely owns class i mod C, then random ones up to `classes_per_client`."""

    classes_per_client: int = 2

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        enough(dataset, clients)
        _classes("classes_per_client", self.classes_per_client, dataset)
        rng = stream(seed, "label_quantity")
        owned = []
        for client in range(clients):
            first = client % dataset.classes
            others = rng.permutation([c for c in range(dataset.classes) if c != first])
            owned.append({first, *map(int, others[: self.classes_per_client - 1])})
        return _divide(dataset, owned, rng, lambda owners: np.full(owners, 1.0 / owners), all_used=False)


@dataclass(frozen=True)
class ClassPartition:
    """Each client draws n ~ U{least..most} classes (redrawn until all are owned); the k owners of a class divide it in
    proportion to |N(mean, std)|. Least and most follow the number of clients if null."""

    least: int | None = None
    most: int | None = None
    mean: float = 10.0
    std: float = 3.0

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        enough(dataset, clients)
        usual = OWNED.get(clients, (3, 5))
        least = min(self.least or usual[0], dataset.classes)
        most = min(self.most or usual[1], dataset.classes)
        if not 1 <= least <= most:
            raise DataError(f"least={least} and most={most} classes per client: least must not be above most")
        if clients * most < dataset.classes:
            raise DataError(f"{clients} clients with at most {most} classes cannot own all {dataset.classes}")
        rng = stream(seed, "class_partition")
        everything = set(range(dataset.classes))
        owned: list[set[int]] = []
        while set().union(*owned) != everything:
            owned = [
                set(map(int, rng.choice(dataset.classes, rng.integers(least, most + 1), replace=False)))
                for _ in range(clients)
            ]

        def lengths(owners: int) -> np.ndarray:
            drawn = np.abs(rng.normal(self.mean, self.std, owners))
            return np.asarray(drawn / drawn.sum())

        return _divide(dataset, owned, rng, lengths)


@dataclass(frozen=True)
class Natural:
    """One client per owner named in the data, the `clients` largest with at least `min_size` training samples; or, with
    `group`, owners joined round robin by size until there are as many groups as clients."""

    min_size: int = 1
    group: bool = False

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        if dataset.owner_train is None:
            raise DataError(
                f"{dataset.name} names no owners: use another partition, or a data set with an owner column"
            )
        names, sizes = np.unique(dataset.owner_train, return_counts=True)
        order = [n for n in np.lexsort((names, -sizes)) if sizes[n] >= self.min_size]
        if len(order) < clients:
            raise DataError(
                f"{len(order)} owners have min_size={self.min_size} samples: set fleet.clients to that or less"
            )
        teams = [order[c::clients] if self.group else [order[c]] for c in range(clients)]
        test = dataset.owner_test if dataset.owner_test is not None else np.empty(0, names.dtype)
        train_parts = [np.flatnonzero(np.isin(dataset.owner_train, names[t])) for t in teams]
        return Partition.of(dataset, train_parts, [np.flatnonzero(np.isin(test, names[t])) for t in teams])


def _divide(
    dataset: Dataset,
    owned: list[set[int]],
    rng: np.random.Generator,
    shares_for: Callable[[int], np.ndarray],
    all_used: bool = True,
) -> Partition:
    """Cut every class among its owners; with `all_used` off, classes without an owner are left out."""
    clients, pieces = len(owned), []
    for label, pool in enumerate(by_class(dataset.labels, dataset.classes, rng)):
        owners = [c for c in range(clients) if label in owned[c]]
        if not owners and not all_used:
            continue
        shares = np.zeros(clients)
        shares[owners] = shares_for(len(owners))
        # the remainder of rounding goes to the last owner, not to the last client
        row = cut(pool, shares[owners])
        given = dict(zip(owners, row, strict=True))
        pieces.append([given.get(c, pool[:0]) for c in range(clients)])
    return Partition.of(dataset, merge(pieces, clients))
