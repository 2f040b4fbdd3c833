"""Label-skewed partitions by Dirichlet draws: per class, per client, or of both sizes and label distributions.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv:1909.06335 (a mix per client); the division of every class is the form most papers use; the dual form is from the
experiments of Li et al., "FedCompass", arXiv:2309.14675.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.dealing import TINY, TRIES, at_ends, at_least, by_class, deal, enough, positive, rounded_down, top_up
from clients.data.partition import Partition
from fedhet.numerics.rng import stream


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided among clients by shares ~ Dir(alpha, ..., alpha): the usual Dirichlet partition.

    It is drawn again until every client has `min_size` samples. balance: a client that has its even share of all data
    gets nothing of the remaining classes. top_up: if none of a thousand draws is enough, as with many clients and a
    small alpha, move samples from the largest clients to those under `min_size`, with a notice of how many clients
    were short; without it, that is an error.
    """

    alpha: float = 0.5
    min_size: int = 2
    balance: bool = False
    top_up: bool = True

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        at_least("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        def draw(rng: np.random.Generator) -> np.ndarray:
            pools, counts = by_class(dataset, rng), []
            held = np.zeros(clients, np.int64)
            for pool in pools:
                shares = rng.dirichlet(np.full(clients, self.alpha)) + TINY
                if self.balance:
                    shares = shares * (held < len(dataset.x_train) / clients)
                counts.append(at_ends(shares / shares.sum(), len(pool)))
                held += counts[-1]
            return deal(pools, counts)

        return _redrawn(draw, "dirichlet", dataset, clients, seed, self.min_size, self.top_up)


@dataclass(frozen=True)
class DirichletClient:
    """Equal sizes; each client has a label distribution ~ Dir(alpha * prior), without classes that have run out.

    alpha: total concentration; 1 over ten equal classes is 0.1 per class.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        size, rng = enough(dataset, clients), stream(seed, "dirichlet_client")
        pools = by_class(dataset, rng)
        sizes = np.array([len(p) for p in pools])
        left, counts = sizes.copy(), np.zeros((clients, dataset.classes), np.int64)
        for client in range(clients):
            mix = rng.dirichlet(self.alpha * sizes / size + TINY) + TINY
            missing = size // clients + (client < size % clients)
            while missing:
                present = mix * (left > 0)
                taken = np.minimum(rng.multinomial(missing, present / present.sum()), left)
                counts[client] += taken
                left -= taken
                missing -= taken.sum()
        return Partition.of(dataset, deal(pools, list(counts.T)), clients)


@dataclass(frozen=True)
class DualDirichlet:
    """Sizes W ~ Dir(alpha1/n, ...) and label distributions I_i ~ Dir(alpha2 * prior), as in FedCompass.

    Client i gets the share W_i I_ij / sum_k W_k I_kj of class j, rounded down, and the last client the remainder.
    alpha1: None: n. alpha2: total concentration; 0.5 over ten classes is 0.05 per class, nearly one class per client.
    Final sizes differ from W. A draw that leaves a client under `min_size` is repeated; `top_up` as in `Dirichlet`.
    """

    alpha1: float | None = None
    alpha2: float = 0.5
    min_size: int = 1
    top_up: bool = True

    def __post_init__(self) -> None:
        positive("alpha1", 1.0 if self.alpha1 is None else self.alpha1)
        positive("alpha2", self.alpha2)
        at_least("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        alpha1 = float(clients if self.alpha1 is None else self.alpha1)

        def draw(rng: np.random.Generator) -> np.ndarray:
            pools = by_class(dataset, rng)
            prior = np.array([len(p) for p in pools]) / len(dataset.x_train)
            sizes = rng.dirichlet(np.full(clients, alpha1 / clients + TINY)) + TINY
            shares = sizes[:, None] * (rng.dirichlet(self.alpha2 * prior + TINY, clients) + TINY)
            shares /= shares.sum(0)
            return deal(pools, [rounded_down(shares[:, j], len(pool)) for j, pool in enumerate(pools)])

        return _redrawn(draw, "dual_dirichlet", dataset, clients, seed, self.min_size, self.top_up)


def _redrawn(
    draw: Callable[[np.random.Generator], np.ndarray], purpose: str, dataset: Dataset, clients: int, seed: int,
    least: int, moving: bool,
) -> Partition:  # fmt: skip
    """The first draw that gives every client `least` samples; if none does, the first draw, topped up."""
    enough(dataset, clients, least)
    for attempt in range(TRIES):
        owner = draw(stream(seed, purpose, attempt))
        if np.bincount(owner, minlength=clients).min() >= least:
            return Partition.of(dataset, owner, clients)
    if not moving:
        raise DataError(
            f"partition={purpose}: in each of {TRIES} draws some of the {clients} clients had fewer than "
            f"min_size={least} samples: raise alpha, lower min_size, use fewer clients, or set "
            "partition.top_up=true to move samples from the largest clients"
        )
    rng = stream(seed, purpose, 0)
    owner = draw(rng)
    short = int((np.bincount(owner, minlength=clients) < least).sum())
    notice = (
        f"partition={purpose}: no draw gave all {clients} clients min_size={least} samples; {short} of them got theirs "
        "from the largest clients"
    )
    return replace(Partition.of(dataset, top_up(owner, clients, least, rng), clients), notice=notice)
