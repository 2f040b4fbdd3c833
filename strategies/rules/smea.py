"""SMEA, smallest maximum eigenvalue averaging: the mean of the n - f updates of least variance in any direction.

S = argmin over |S| = n - f of the largest eigenvalue of the covariance of S, answer = mean of S. Valid for n > 2f.
Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the Privacy-Robustness-Utility Trilemma in Distributed Learning",
arXiv:2302.04787, Algorithm 2. It enumerates C(n, f) subsets, so n or f must be small.

Most subsets need no eigenvalues: if t is the top eigenvalue of a good subset, t I - A has a Cholesky factor only if all
eigenvalues of A are below t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules import tolerance
from strategies.rules.geometry import mean_of, subsets
from strategies.rules.ties import LEVEL, lowest

GOOD, SLACK = 32, 1e-9
"""Number of subsets of smallest trace examined first; relative margin of a bound against rounding."""


@dataclass(frozen=True)
class Smea(tolerance.Tolerant, AbstractLinearRule):
    """SMEA: the mean of the n - f updates whose covariance has the smallest top eigenvalue.

    Ties go to the lexicographically first subset. f: Byzantine updates to tolerate, a number or a share below 0.5.
    limit: largest number of subsets to enumerate.
    Raises ValueError for values out of range and, when combining, for n <= 2f or more subsets than `limit`.
    """

    f: tolerance.Tolerance = 0.2
    limit: int = 100_000

    def __post_init__(self) -> None:
        tolerance.check(self.f)
        if self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 subset")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        n, f = len(gram), tolerance.count(self.f, len(gram))
        tolerance.within(self, f, n, 2 * f + 1)
        bound, found = np.inf, list[tuple[np.ndarray, np.ndarray, np.ndarray]]()
        for batch in subsets(self, n, n - f, self.limit):
            around, sizes = scatter(gram, batch), np.diag(gram)[batch].sum(axis=1)
            left, bound = below(around, sizes, bound)
            found.append((np.linalg.eigvalsh(around[left])[:, -1], sizes[left], batch[left]))
        tops, sizes, left = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return mean_of(left[lowest(tops, sizes)], n)


def scatter(gram: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Inner products of each subset's updates around its own mean, (b, k, k) for (b, k) indices."""
    inner: np.ndarray = gram[batch[:, :, None], batch[:, None, :]]
    row = inner.mean(axis=1, keepdims=True)
    inner += row.mean(axis=2, keepdims=True)
    inner -= row
    inner -= row.transpose(0, 2, 1)
    return inner


def below(around: np.ndarray, sizes: np.ndarray, bound: float) -> tuple[np.ndarray, float]:
    """Indices, ascending, of the matrices whose top eigenvalue may be the smallest or tie with it, and the new bound.

    The bound, at most the given one, is above the smallest top eigenvalue.
    """
    good = np.argsort(np.trace(around, axis1=1, axis2=2), kind="stable")[:GOOD]
    tops = np.linalg.eigvalsh(around[good])[:, -1]
    at = int(tops.argmin())
    bound = min(bound, float(tops[at]) * (1.0 + SLACK) + 2.0 * LEVEL * float(sizes[good[at]]))
    if not bound > 0.0:
        return np.arange(len(around)), bound
    _, failed = torch.linalg.cholesky_ex(torch.from_numpy(bound * np.eye(around.shape[1]) - around))
    return np.flatnonzero(failed.numpy() == 0), bound
