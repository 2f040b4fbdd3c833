"""Label-skewed partitions in which each client owns a subset of the classes.

Shards: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
section 3. Label quantity: Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos: An Experimental Study",
arXiv:2102.02079, section IV. Class partition: Li et al., "FedCompass", arXiv:2309.14675, experiments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.dealing import TRIES, at_ends, at_least, by_class, deal, enough
from clients.data.partition import Partition
from fedhet.numerics.rng import stream

OWNED = {1: (10, 10), 2: (7, 8), 3: (6, 8), 4: (5, 7), 5: (5, 6), 6: (4, 6), 7: (4, 5)}
"""Least and most classes per client by number of clients; 8 and more: (3, 5)."""


@dataclass(frozen=True)
class Shards:
    """Sort by label, split into clients * per_client equal shards, assign `per_client` random ones to each.

    Shard sizes differ by at most one and all samples are used, so a shard can contain samples of two classes.
    """

    per_client: int = 2

    def __post_init__(self) -> None:
        at_least("per_client", self.per_client, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        size, shards = enough(dataset, clients), clients * self.per_client
        if shards > size:
            raise DataError(
                f"per_client={self.per_client} shards for {clients} clients do not fit {size} samples: set "
                f"partition.per_client to at most {size // clients}"
            )
        rng = stream(seed, "shards")
        order = rng.permutation(size)
        order = order[np.argsort(dataset.labels[order], kind="stable")]
        dealt = rng.permutation(shards).reshape(clients, self.per_client)
        client = np.empty(shards, np.int32)  # the client of each shard
        client[dealt.ravel()] = np.repeat(np.arange(clients), self.per_client)
        owner = np.empty(size, np.int32)
        owner[order] = np.repeat(client, np.full(shards, size // shards) + (np.arange(shards) < size % shards))
        return Partition.of(dataset, owner, clients)


@dataclass(frozen=True)
class Pathological:
    """`classes_per_client` classes per client; every class has about as many owners, who share it evenly."""

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        at_least("classes_per_client", self.classes_per_client, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        enough(dataset, clients)
        k = _at_most("classes_per_client", self.classes_per_client, dataset)
        if k * clients < dataset.classes:
            raise DataError(
                f"{clients} clients with classes_per_client={k} leave some of {dataset.classes} classes without an "
                f"owner: set it to at least {-(-dataset.classes // clients)}"
            )
        rng = stream(seed, "pathological")
        owned, dealt = np.zeros((clients, dataset.classes), bool), np.zeros(dataset.classes, np.int64)
        for row in owned:
            # the classes that were dealt least so far, in random order among equals
            order = rng.permutation(dataset.classes)
            row[order[np.argsort(dealt[order], kind="stable")][:k]] = True
            dealt += row
        return _divide(dataset, owned, rng, _evenly)


@dataclass(frozen=True)
class LabelQuantity:
    """Client i owns class i mod C and random others, `classes_per_client` in all; owners share a class evenly.

    With fewer clients than classes some classes may be unused.
    """

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        at_least("classes_per_client", self.classes_per_client, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        enough(dataset, clients)
        k = _at_most("classes_per_client", self.classes_per_client, dataset)
        rng = stream(seed, "label_quantity")
        owned = np.zeros((clients, dataset.classes), bool)
        for client in range(clients):
            first = client % dataset.classes
            others = rng.permutation([c for c in range(dataset.classes) if c != first])
            owned[client, [first, *map(int, others[: k - 1])]] = True
        return _divide(dataset, owned, rng, _evenly)


@dataclass(frozen=True)
class ClassPartition:
    """Each client owns n ~ U{least..most} classes; owners share a class in proportion to |N(mean, std)|.

    All clients draw again until every class has an owner. least, most: None: by the number of clients, see `OWNED`.
    """

    least: int | None = None
    most: int | None = None
    mean: float = 10.0
    std: float = 3.0

    def __post_init__(self) -> None:
        for name, value in (("least", self.least), ("most", self.most)):
            if value is not None:
                at_least(name, value, 1)
        if not (np.isfinite(self.mean) and 0 <= self.std < np.inf and (self.mean or self.std)):
            raise DataError(f"mean={self.mean}, std={self.std}: finite numbers, std not negative, not both 0")

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        enough(dataset, clients)
        usual = OWNED.get(clients, (3, 5))
        least = min(usual[0] if self.least is None else self.least, dataset.classes)
        most = min(usual[1] if self.most is None else self.most, dataset.classes)
        if least > most:
            raise DataError(f"least={least} classes per client is above most={most}")
        rng = stream(seed, "class_partition")
        owned = self._owned(rng, clients, dataset.classes, least, most)

        def lengths(owners: int) -> np.ndarray:
            drawn = np.abs(rng.normal(self.mean, self.std, owners))
            return np.asarray(drawn / drawn.sum())

        return _divide(dataset, owned, rng, lengths)

    def _owned(self, rng: np.random.Generator, clients: int, classes: int, least: int, most: int) -> np.ndarray:
        if clients * most >= classes:
            for _ in range(TRIES):
                owned = np.zeros((clients, classes), bool)
                for row in owned:
                    row[rng.choice(classes, rng.integers(least, most + 1), replace=False)] = True
                if owned.any(0).all():
                    return owned
        raise DataError(
            f"{clients} clients with {least} to {most} of {classes} classes each did not own all of them in {TRIES} "
            "draws: raise partition.most, or use more clients"
        )


def _at_most(name: str, value: int, dataset: Dataset) -> int:
    if value > dataset.classes:
        raise DataError(f"{name}={value} must be at most the {dataset.classes} classes of {dataset.name}")
    return value


def _evenly(owners: int) -> np.ndarray:
    return np.full(owners, 1.0 / owners)


def _divide(
    dataset: Dataset, owned: np.ndarray, rng: np.random.Generator, shares: Callable[[int], np.ndarray]
) -> Partition:
    """Cut every class among its owners; `owned` is (clients, classes). A class without an owner is left out.

    The remainder of rounding goes to the class's last owner.
    """
    pools, clients = by_class(dataset, rng), len(owned)
    counts = []
    for pool, row in zip(pools, owned.T, strict=True):
        count = np.zeros(clients, np.int64)
        if row.any():
            count[row] = at_ends(shares(int(row.sum())), len(pool))
        counts.append(count)
    return Partition.of(dataset, deal(pools, counts), clients)
