"""The Flag Aggregator: project the updates on the subspace that explains most of each of them.

Y = argmin over Y'Y = I of sum_i sqrt(1 - v_i) + lam/(n-1) sum_{i != j} sqrt(1 - u_ij), with v_i = |Y'x_i|^2 / |x_i|^2
and u_ij the same for x_i - x_j, by reweighted eigendecompositions; the answer is Y Y' sum_i r_i x_i / |x_i|.
Almasi, Mishra, Vamanan, Ravi, "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses
using Convex Optimization", arXiv:2302.05865, equations (4) and (5). Only inner products are used: pair columns add up
to a graph Laplacian among the updates, so neither they nor Y are formed.

The published formula (out="paper", r_i = |x_i| / n) is unbounded in each update's norm, so one large update breaks it.
The authors' code scales every update to norm 1 first (out="authors", r_i = 1 / m, one iteration). This scaling, not the
subspace, makes it robust: compare with `strategies.rules.unit_mean`. out="unit" scales the step to the median norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhet.bases import AbstractLinearRule
from fedhet.protocols import View
from fedhet.types import Update
from strategies.rules.geometry import squared_distances
from strategies.rules.ties import LEVEL

OUT = ("unit", "authors", "paper")
PAIRS = ("paper", "authors")
EPS, RCOND, SAME = 1e-7, 1e-12, 1e-8
"""Floor of 1 - v in the weights; share of the largest eigenvalue below which a direction is dropped;
share of it within which directions count the same."""


@dataclass(frozen=True)
class Flag(AbstractLinearRule):
    """Flag Aggregator: projection on the flag median of the updates. With out="paper" it is not robust.

    out: scaling of the result, see the module. dimension: m of the subspace; None is ceil((n + 1) / 2). lam: weight of
    the pair terms, 0 for none. pairs: "paper" divides differences by their own length, "authors" takes differences of
    unit vectors. iterations, tolerance: reweightings at most, and the change of the objective that ends them early.
    Raises ValueError for values out of range. Updates of length zero are left out.
    """

    out: str = "unit"
    dimension: int | None = None
    lam: float = 0.0
    pairs: str = "paper"
    iterations: int = 5
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        for name, value, known in (("out", self.out, OUT), ("pairs", self.pairs, PAIRS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}")
        if self.dimension is not None and self.dimension < 1:
            raise ValueError(f"dimension={self.dimension} must be at least 1, or null for ceil((n + 1) / 2)")
        if not 0.0 <= self.lam < math.inf or not self.tolerance >= 0.0:
            raise ValueError(f"lam={self.lam} and tolerance={self.tolerance} must be 0 or more")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} must be at least 1")

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        c = np.zeros(len(gram))
        alive = np.flatnonzero(np.diag(gram) > 0.0)
        if len(alive):
            c[alive] = self._project(gram[np.ix_(alive, alive)])
        return c

    def _project(self, gram: np.ndarray) -> np.ndarray:
        n, s = len(gram), np.sqrt(np.diag(gram))
        m = math.ceil((n + 1) / 2) if self.dimension is None else min(self.dimension, n)
        basis = subspace(gram, m, self.lam, self.pairs, self.iterations, self.tolerance)
        length = {"paper": s / n, "authors": np.full(n, 1.0 / m), "unit": np.full(n, float(np.median(s)) / n)}
        c: np.ndarray = basis @ (basis.T @ (gram / np.outer(s, s)) @ length[self.out]) / s
        return c


def subspace(gram: np.ndarray, m: int, lam: float, pairs: str, iterations: int, tolerance: float) -> np.ndarray:
    """T, shape (n, k), with Y = [x_i / |x_i|] T orthonormal: T'CT = I for the matrix C of cosines. k is m, or C's rank
    if that is less, or more where further directions count exactly as much as the m-th."""
    n, s = len(gram), np.sqrt(np.diag(gram))
    cosines, squared = gram / np.outer(s, s), squared_distances(gram)
    lam = lam if n > 1 else 0.0
    v, u, before = np.zeros(n), np.zeros((n, n)), math.inf
    basis: np.ndarray = np.zeros((n, 0))
    for _ in range(iterations):
        second = np.diag((np.abs(1.0 - v) + EPS) ** -0.5)
        if lam:
            second += _pair_moment(s, squared, u, lam, pairs)
        values, vectors = np.linalg.eigh(second)
        root = vectors * np.sqrt(np.maximum(values, 0.0))  # root @ root' = second
        values, vectors = np.linalg.eigh(root.T @ cosines @ root)
        top = np.flatnonzero(values > np.maximum(RCOND * values[-1], values[-min(m, n)] - SAME * values[-1]))
        basis = root @ vectors[:, top] / np.sqrt(values[top])
        z = basis.T @ cosines  # Y'x_i / |x_i|, column by column
        v = _share((z**2).sum(axis=0))
        objective = float(np.sqrt(1.0 - v).sum())
        if lam:
            u = _pair_values(z, s, squared, pairs)
            objective += lam / (n - 1) * float(np.sqrt(np.maximum(1.0 - u, 0.0))[~np.eye(n, dtype=bool)].sum())
        if abs(before - objective) < tolerance:
            break
        before = objective
    return basis


def _pair_moment(s: np.ndarray, squared: np.ndarray, u: np.ndarray, lam: float, pairs: str) -> np.ndarray:
    """Second moment of all n (n - 1) weighted pair columns, as coefficients of the unit vectors: a graph Laplacian."""
    n, distance = len(s), np.abs(1.0 - u) + EPS
    if pairs == "authors":
        edges = 2.0 * (lam / (n * (n - 1)) * distance**-0.25) ** 2
        np.fill_diagonal(edges, 0.0)
        unit: np.ndarray = np.diag(edges.sum(axis=1)) - edges
        return unit
    edges = 2.0 * lam / (n - 1) * np.divide(distance**-0.5, squared, out=np.zeros((n, n)), where=squared > 0.0)
    laplacian: np.ndarray = (np.diag(edges.sum(axis=1)) - edges) * np.outer(s, s)
    return laplacian


def _pair_values(z: np.ndarray, s: np.ndarray, squared: np.ndarray, pairs: str) -> np.ndarray:
    """u_ij, the explained share of each difference; 1 where two updates coincide."""
    if pairs == "authors":
        return squared_distances(z.T @ z)  # of unit vectors' differences, which may be longer than 1
    inside = squared_distances((z * s).T @ (z * s))
    share = np.divide(inside, squared, out=np.ones_like(inside), where=squared > 0.0)
    return _share(share)


def _share(values: np.ndarray) -> np.ndarray:
    """Clip shares to [0, 1], and set those within rounding of 1 to 1, as the square root of 1 - share is taken."""
    result: np.ndarray = np.where(values >= 1.0 - LEVEL, 1.0, np.maximum(values, 0.0))
    return result
