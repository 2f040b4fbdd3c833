"""Partitions with the same label distribution for all clients, of equal or unequal sizes, or with shared samples.

Size skew by a Dirichlet draw: Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos: An Experimental Study",
arXiv:2102.02079, section IV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.dealing import at_ends, at_least, deal, enough, positive
from clients.data.partition import Drawn, Partition
from fedhet.numerics.rng import stream


@dataclass(frozen=True)
class Iid:
    """IID: shuffled and divided evenly; sizes differ by at most one."""

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        size = enough(dataset, clients)
        counts = np.full(clients, size // clients) + (np.arange(clients) < size % clients)
        return Partition.of(dataset, deal([stream(seed, "iid").permutation(size)], [counts]), clients)


@dataclass(frozen=True)
class PerClient:
    """`per_client` samples per client, drawn with replacement: for fleets larger than the data set."""

    per_client: int = 60

    def __post_init__(self) -> None:
        at_least("per_client", self.per_client, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        at_least("clients", clients, 1)
        return Partition(dataset, Drawn(clients, self.per_client, len(dataset.x_train), seed))


@dataclass(frozen=True)
class Quantity:
    """Sizes ~ Dir(beta) (law: dirichlet) or exp(N(0, sigma^2)) (law: lognormal), with IID labels.

    Every client gets one sample before the rest is divided.
    """

    law: str = "dirichlet"
    beta: float = 0.5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if self.law not in ("dirichlet", "lognormal"):
            raise DataError(f"law={self.law!r}: use dirichlet or lognormal")
        positive("beta", self.beta)
        positive("sigma", self.sigma)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        size, rng = enough(dataset, clients), stream(seed, "quantity")
        if self.law == "dirichlet":
            shares = rng.dirichlet(np.full(clients, self.beta))
        else:
            shares = np.exp(self.sigma * rng.standard_normal(clients))
        counts = 1 + at_ends(shares / shares.sum(), size - clients)
        return Partition.of(dataset, deal([rng.permutation(size)], [counts]), clients)
