"""Natural partition: one client per owner (writer, speaker, user) of the samples.

Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097: one client per writer or role.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.dealing import at_least
from clients.data.partition import NOBODY, Partition


@dataclass(frozen=True)
class Natural:
    """One client per natural owner of the samples: the largest owners with at least `min_size` samples each.

    group: all such owners take part, joined round robin by size into as many groups as there are clients.
    """

    min_size: int = 1
    group: bool = False

    def __post_init__(self) -> None:
        at_least("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        at_least("clients", clients, 1)
        if dataset.owner_train is None:
            raise DataError(
                f"{dataset.name} names no owners: use another partition, or name their column in data.owner"
            )
        names, place, sizes = np.unique(dataset.owner_train, return_inverse=True, return_counts=True)
        order = np.lexsort((names, -sizes))
        order = order[sizes[order] >= self.min_size]
        if len(order) < clients:
            raise DataError(
                f"{len(order)} of {len(names)} owners have min_size={self.min_size} samples: set fleet.clients to at "
                f"most {len(order)}, or lower partition.min_size"
            )
        client = np.full(len(names), NOBODY, np.int32)  # the client of each owner
        if self.group:
            client[order] = np.arange(len(order)) % clients
        else:
            client[order[:clients]] = np.arange(clients)
        return Partition.of(dataset, client[place], clients, self._test(dataset, names, client))

    def _test(self, dataset: Dataset, names: np.ndarray, client: np.ndarray) -> np.ndarray | None:
        if dataset.owner_test is None:
            return None
        place = np.minimum(np.searchsorted(names, dataset.owner_test), len(names) - 1)
        found: np.ndarray = np.where(names[place] == dataset.owner_test, client[place], NOBODY)
        return found
