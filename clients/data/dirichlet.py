"""Label skew and size skew by Dirichlet draws.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv:1909.06335 (mixes per client); the split per class is the form most papers use; the dual form is FedCompass's
(arXiv:2309.14675, experiments).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.partition import Partition, by_class, cut, enough, merge, positive
from fedhet.streams import stream

TRIES = 1000
TINY = 1e-12  # keeps the smallest concentrations from underflowing to 0/0


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided by shares ~ Dir(alpha, ..., alpha). Redrawn until every client has `min_size` samples.

    balance: a client that has its even share of all data gets nothing of the classes still to be divided.
    """

    alpha: float = 0.5
    min_size: int = 2
    balance: bool = False

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        positive("alpha", self.alpha)
        size = enough(dataset, clients)
        if self.min_size * clients > size:
            raise DataError(
                f"min_size={self.min_size} for {clients} clients needs more than the {size} samples there are"
            )
        for attempt in range(TRIES):
            rng = stream(seed, "dirichlet", attempt)
            parts = self._draw(dataset, clients, rng)
            if min(map(len, parts)) >= self.min_size:
                return Partition.of(dataset, parts)
        raise DataError(
            f"alpha={self.alpha} left a client with under min_size={self.min_size} samples in {TRIES} draws: "
            f"raise alpha, lower min_size, or use fewer than {clients} clients"
        )

    def _draw(self, dataset: Dataset, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        pieces, held = [], np.zeros(clients)
        for pool in by_class(dataset.labels, dataset.classes, rng):
            shares = rng.dirichlet(np.full(clients, self.alpha)) + TINY
            if self.balance:
                shares = shares * (held < len(dataset.x_train) / clients)
            pieces.append(cut(pool, shares / shares.sum()))
            held += [len(p) for p in pieces[-1]]
        return merge(pieces, clients)


@dataclass(frozen=True)
class DirichletClient:
    """Each client fills an even share of the data from its own class mix ~ Dir(alpha * prior); a class that has run
    out is taken from the mix."""

    alpha: float = 0.5

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        positive("alpha", self.alpha)
        size = enough(dataset, clients)
        rng = stream(seed, "dirichlet_client")
        pools = [list(p) for p in by_class(dataset.labels, dataset.classes, rng)]
        prior = np.array([len(p) for p in pools]) / size
        parts = []
        for client in range(clients):
            quota = size // clients + (client < size % clients)
            mix = rng.dirichlet(self.alpha * prior + TINY) + TINY
            part: list[int] = []
            while len(part) < quota:
                left = np.array([len(p) for p in pools])
                open_mix = mix * (left > 0)
                wanted = rng.multinomial(quota - len(part), open_mix / open_mix.sum())
                for label, count in enumerate(np.minimum(wanted, left)):
                    part += [pools[label].pop() for _ in range(count)]
            parts.append(np.sort(np.array(part)))
        return Partition.of(dataset, parts)


@dataclass(frozen=True)
class DualDirichlet:
    """Sizes W ~ Dir(alpha1/n, ...), class mixes I_i ~ Dir(alpha2 * prior); client i gets the share
    W_i I_ij / sum_k W_k I_kj of class j. `alpha1` null is n. Redrawn until nobody is empty.

    alpha2 is the concentration in total: 0.5 over ten classes is 0.05 a class, nearly one class per client.
    """

    alpha1: float | None = None
    alpha2: float = 0.5

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        positive("alpha2", self.alpha2)
        size = enough(dataset, clients)
        alpha1 = float(clients if self.alpha1 is None else self.alpha1)
        positive("alpha1", alpha1)
        for attempt in range(TRIES):
            rng = stream(seed, "dual_dirichlet", attempt)
            pools = by_class(dataset.labels, dataset.classes, rng)
            prior = np.array([len(p) for p in pools]) / size
            sizes = rng.dirichlet(np.full(clients, alpha1 / clients)) + TINY
            mixes = rng.dirichlet(self.alpha2 * prior + TINY, clients) + TINY
            shares = sizes[:, None] * mixes
            shares /= shares.sum(0)
            parts = merge([cut(pool, shares[:, j]) for j, pool in enumerate(pools)], clients)
            if min(map(len, parts)) > 0:
                return Partition.of(dataset, parts)
        raise DataError(f"{clients} clients: a client stayed empty in {TRIES} draws; raise alpha1 or alpha2")


@dataclass(frozen=True)
class Quantity:
    """Sizes ~ Dir(beta) (law: dirichlet) or exp(N(0, sigma^2)) (law: lognormal), labels as in the whole data."""

    law: str = "dirichlet"
    beta: float = 0.5
    sigma: float = 1.0

    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition:
        if self.law not in ("dirichlet", "lognormal"):
            raise DataError(f"law={self.law!r}: use dirichlet or lognormal")
        size = enough(dataset, clients)
        rng = stream(seed, "quantity")
        if self.law == "dirichlet":
            positive("beta", self.beta)
            shares = rng.dirichlet(np.full(clients, self.beta))
        else:
            positive("sigma", self.sigma)
            shares = np.exp(self.sigma * rng.standard_normal(clients))
        # one sample each before the rest is divided: nobody is empty
        shares = (1 + shares / shares.sum() * (size - clients)) / size
        return Partition.of(dataset, [np.sort(p) for p in cut(rng.permutation(size), shares)])
