"""Bulyan: repeated Krum selection, then a mean around the median per coordinate.

n - 2f times: score the remaining updates by Krum with max(1, remaining - f - 2) neighbours and select the best; then
per coordinate the mean of the n - 4f selected values nearest to their median. Valid for n >= 4f + 3.
El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", arXiv:1802.07927,
section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedhet.bases.rule import AbstractRule, UpdateMatrix
from fedhet.protocols import View
from fedhet.types import Tree
from strategies.rules import tolerance
from strategies.rules.geometry import squared_distances
from strategies.rules.krum import by_score
from strategies.rules.order import mean_around, middle, ordered


@dataclass(frozen=True)
class NearMedian:
    """The mean of the `keep` values nearest to the median."""

    keep: int

    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        rows = ordered(block)
        return mean_around(rows, middle(rows), self.keep)


@dataclass(frozen=True)
class Bulyan(tolerance.Tolerant, AbstractRule):
    """Bulyan: repeated Krum selection, then a mean around the median per coordinate.

    f: Byzantine updates to tolerate, a number or a share below 0.5. Raises ValueError for values out of range and, when
    combining, for n < 4f + 3 unless f is 0.
    """

    f: tolerance.Tolerance = 0.1

    PER: ClassVar[int] = 4
    MORE: ClassVar[int] = 3
    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates", "distances"})

    def __post_init__(self) -> None:
        tolerance.check(self.f)

    def on(self, rows: UpdateMatrix, view: View) -> Tree:
        n, f = len(rows), tolerance.count(self.f, len(rows))
        tolerance.within(self, f, n, 4 * f + 3 if f else 1)
        if not f:
            return rows.sum(np.full(n, 1.0 / n))
        chosen = choose(rows.gram, f)
        picked = rows.mix(np.eye(n)[chosen], rows.weights[chosen])
        return picked.reduce(NearMedian(n - 4 * f))


def choose(gram: np.ndarray, f: int) -> list[int]:
    """Indices of the n - 2f updates that Krum selects one after another, in ascending order."""
    squared, norms, left = squared_distances(gram), np.diag(gram), list(range(len(gram)))
    chosen = []
    for _ in range(len(gram) - 2 * f):
        first = by_score(squared[np.ix_(left, left)], norms[left], max(1, len(left) - f - 2))[0]
        chosen.append(left.pop(int(first)))
    return sorted(chosen)
