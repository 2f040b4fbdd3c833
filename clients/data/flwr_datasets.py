"""Any partitioner of Flower Datasets, by the name of its class, as index arrays over a fedhet data set.

fedhet's own partitions have the same methods without that package. They differ where the package takes contiguous
ranges of sorted data, drops remainders or gives up after ten draws. Use this one for results that must be comparable
with the package: samples, sizes and random numbers are the package's. Samples are shuffled first, as in its
`FederatedDataset`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.partition import NOBODY, Partition
from fedhet.numerics.rng import number, stream

PACKAGE = "flwr_datasets.partitioner"
SEEDS = 1 << 31
"""Seeds of the package's partitioners are below this."""


@dataclass(frozen=True)
class FlwrDatasets:
    """A partitioner of Flower Datasets.

    partitioner: name of a class of `flwr_datasets.partitioner`. options: its arguments. Three arguments are filled in
    where the class has them and `options` does not: `num_partitions` (the number of clients), `partition_by` ("label";
    "owner" is the natural owner of a sample), and `seed` (from the run's seed).

    Raises DataError without the package, for a class or argument it does not have, and where the number of its
    partitions is not the number of clients.
    """

    partitioner: str = "IidPartitioner"
    options: Mapping[str, Any] = field(default_factory=dict)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        kind = self._class()
        known = inspect.signature(kind).parameters
        filled = {"num_partitions": clients, "partition_by": "label", "seed": number(seed, "flwr_datasets") % SEEDS}
        options = {k: v for k, v in filled.items() if k in known} | dict(self.options)
        for key in options:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
                raise DataError(f"partition.options.{key}: {self.partitioner} has no such argument{hint}")
        made = kind(**options)
        made.dataset = _table(dataset, seed)
        if made.num_partitions != clients:
            raise DataError(
                f"{self.partitioner} makes {made.num_partitions} partitions of {dataset.name}, the fleet has {clients} "
                f"clients: set fleet.clients={made.num_partitions}"
            )
        owner = np.full(len(dataset.x_train), NOBODY, np.int64)
        for client in range(clients):
            owner[np.asarray(made.load_partition(client)["index"], np.int64)] = client
        return Partition.of(dataset, owner, clients)

    def _class(self) -> Any:
        try:
            package = importlib.import_module(PACKAGE)
        except ModuleNotFoundError as error:
            raise DataError(
                f"partition=flwr_datasets needs the package: pip install 'fedhet[flwr-datasets]' ({error})"
            ) from None
        names = [name for name in package.__all__ if name.endswith("Partitioner") and name != "Partitioner"]
        if self.partitioner not in names:
            near = difflib.get_close_matches(self.partitioner, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise DataError(f"partition.partitioner={self.partitioner!r} is no class of {PACKAGE}: {hint}")
        return getattr(package, self.partitioner)


def _table(dataset: Dataset, seed: int) -> Any:
    """The training samples' numbers, labels and owners as the package wants them, shuffled."""
    from datasets import Dataset as Table

    order = stream(seed, "flwr_datasets").permutation(len(dataset.x_train))
    columns: dict[str, list[int]] = {"index": order.tolist()}
    if dataset.labelled:
        columns["label"] = dataset.labels[order].tolist()
    if dataset.owner_train is not None:
        columns["owner"] = dataset.owner_train[order].tolist()
    return Table.from_dict(columns)
