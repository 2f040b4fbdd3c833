"""Krum and Multi-Krum: select the updates that are closest to their nearest neighbours.

score_i = sum of |x_i - x_j|^2 over the n - f - 2 updates nearest to i; Krum returns the update of lowest score,
Multi-Krum the mean of the `keep` updates of lowest score. Valid for n >= 2f + 3.
Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
arXiv:1703.02757, section 4. Other code in use takes n - f - 1 neighbours and keep = n - f; both can be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.engine.aggregator import Shortage
from fedhet.protocols import View
from fedhet.types import ClientId, Update
from strategies.rules import tolerance
from strategies.rules.geometry import mean_of, squared_distances
from strategies.rules.ties import ranks


def by_score(squared: np.ndarray, norms: np.ndarray, neighbours: int) -> np.ndarray:
    """Indices by ascending sum of squared distances to the `neighbours` nearest others, (n,). `norms` are squared.

    With one neighbour, two updates that are each other's nearest tie; the sum over all others breaks the tie, then the
    index.
    """
    order = np.argsort(squared, axis=1, kind="stable")[:, 1:]  # without the 0 to itself
    nearest, sizes = np.take_along_axis(squared, order, axis=1), norms[:, None] + norms[order]
    score = ranks(nearest[:, :neighbours].sum(axis=1), sizes[:, :neighbours].sum(axis=1))
    result: np.ndarray = np.lexsort((ranks(nearest.sum(axis=1), sizes.sum(axis=1)), score))
    return result


def ranking(rule: object, gram: np.ndarray, f: int, neighbours: int | None) -> np.ndarray:
    """Indices by ascending score. Without Byzantine updates (f = 0) any n is allowed."""
    n = len(gram)
    tolerance.within(rule, f, n, 2 * f + 3 if f else 1)
    m = max(0, n - f - 2) if neighbours is None else neighbours
    if m > n - 1:
        raise ValueError(_few_others(m, n))
    return by_score(squared_distances(gram), np.diag(gram), m)


def _few_others(neighbours: int, n: int) -> str:
    return f"neighbours={neighbours}, but each of {n} updates has {n - 1} others"


class AbstractKrum(tolerance.Tolerant, AbstractLinearRule):
    """Common checks of Krum and Multi-Krum: at least 2f + 3 updates and more updates than `neighbours`."""

    MORE: ClassVar[int] = 3
    neighbours: int | None

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        if self.neighbours is not None and self.neighbours > len(clients) - 1:
            return Shortage("neighbours", self.neighbours, _few_others(self.neighbours, len(clients)))
        return super().lacks(clients)


@dataclass(frozen=True)
class Krum(AbstractKrum):
    """Krum: the one update closest to its nearest neighbours.

    f: Byzantine updates to tolerate, a number or a share below 0.5. neighbours: how many count; None is n - f - 2.
    Raises ValueError for values out of range and, when combining, for fewer than 2f + 3 updates.
    """

    f: tolerance.Tolerance = 0.2
    neighbours: int | None = None

    def __post_init__(self) -> None:
        tolerance.check(self.f)
        if self.neighbours is not None and self.neighbours < 1:
            raise ValueError(f"neighbours={self.neighbours} must be at least 1, or null for n - f - 2")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        f = tolerance.count(self.f, len(gram))
        return mean_of(ranking(self, gram, f, self.neighbours)[:1], len(gram))


@dataclass(frozen=True)
class MultiKrum(AbstractKrum):
    """Multi-Krum: the mean of the updates closest to their nearest neighbours.

    f, neighbours: as for Krum. keep: how many are averaged; None is n - f - 2 (at least 1).
    Raises ValueError for values out of range and, when combining, for fewer than 2f + 3 or than `keep` updates.
    """

    f: tolerance.Tolerance = 0.2
    neighbours: int | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        tolerance.check(self.f)
        for name, value in (("neighbours", self.neighbours), ("keep", self.keep)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or null for n - f - 2")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        n, f = len(gram), tolerance.count(self.f, len(gram))
        keep = (n if f == 0 else n - f - 2) if self.keep is None else self.keep
        if keep > n:
            raise ValueError(self._few(n))
        return mean_of(ranking(self, gram, f, self.neighbours)[:keep], n)

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        if self.keep is not None and self.keep > len(clients):
            return Shortage("keep", self.keep, self._few(len(clients)))
        return super().lacks(clients)

    def _few(self, n: int) -> str:
        return f"keep={self.keep}, but this combination has {n} updates"
