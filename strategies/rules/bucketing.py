"""Bucketing: average random groups of updates, which reduces the variance among honest ones.

A random permutation is cut into ceil(n / size) buckets, the last possibly smaller; row k of M averages bucket k. With f
Byzantine updates the rule that follows sees up to f Byzantine buckets: give it f as a number, and keep size < n / (2f).
Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", arXiv:2006.09365,
Algorithm 1. Put in front of a rule, see `strategies.rules.chain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases.rule import UpdateMatrix
from fedhet.protocols import View
from fedhet.types import ClientId


@dataclass(frozen=True)
class Bucketing:
    """Means of random buckets of `size` updates. A bucket's weight is the sum of its members' weights.

    The permutation is drawn on the server and not sent to clients. Raises ValueError for a size below 1.
    """

    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1 update a bucket")

    def __call__(self, rows: UpdateMatrix, view: View) -> UpdateMatrix:
        n = len(rows)
        order = view.rng("bucketing").permutation(n)
        member = np.zeros((-(-n // self.size), n))
        member[np.arange(n) // self.size, order] = 1.0
        return rows.mix(member / member.sum(axis=1, keepdims=True), member @ rows.weights)

    def merged(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """The owners of the rows that the next rule sees: -1 for every bucket."""
        return [-1] * -(-len(clients) // self.size)
