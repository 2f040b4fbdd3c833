"""Distances and neighbours from a Gram matrix K: |x_i - x_j|^2 = K_ii + K_jj - 2 K_ij."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from strategies.rules.ties import LEVEL, ranks


def squared_distances(gram: np.ndarray) -> np.ndarray:
    """Squared distances, (n, n), not negative; zero on the diagonal and wherever they are within rounding of zero."""
    norms = np.diag(gram)
    sizes = norms[:, None] + norms[None, :]
    result: np.ndarray = sizes - 2.0 * gram
    result[result <= LEVEL * sizes] = 0.0
    np.fill_diagonal(result, 0.0)
    return result


def distances_to(gram: np.ndarray, c: np.ndarray) -> np.ndarray:
    """|x_i - sum_j c_j x_j| for every i, shape (n,): the square is K_ii - 2 (Kc)_i + c'Kc."""
    product = gram @ c
    result: np.ndarray = np.sqrt(np.maximum(np.diag(gram) - 2.0 * product + c @ product, 0.0))
    return result


def nearest(gram: np.ndarray, keep: int) -> np.ndarray:
    """Indices of the `keep` rows nearest to each row, ties to the lower index; shape (n, keep).

    A row belongs to its own neighbourhood even if others coincide with it.
    """
    norms = np.diag(gram)
    own = ranks(squared_distances(gram), norms[:, None] + norms)
    np.fill_diagonal(own, -1)
    result: np.ndarray = np.argsort(own, axis=1, kind="stable")[:, :keep]
    return result


def mean_of(chosen: np.ndarray, n: int) -> np.ndarray:
    """Coefficients (n,) of the plain mean of the chosen indices."""
    c = np.zeros(n)
    c[chosen] = 1.0 / len(chosen)
    return c


def subsets(rule: object, n: int, size: int, limit: int) -> Iterator[np.ndarray]:
    """Every subset of `size` of n indices, in batches (b, size), lexicographic. Raises ValueError above the limit."""
    number = math.comb(n, size)
    if number > limit:
        raise ValueError(
            f"{type(rule).__name__} would look at {number} subsets of {size} out of {n}, more than limit={limit}: "
            f"choose a rule that does not enumerate (krum, nnm), a smaller f, or a higher limit"
        )
    every = itertools.combinations(range(n), size)
    while len(batch := np.fromiter(itertools.chain.from_iterable(itertools.islice(every, 4096)), np.intp)):
        yield batch.reshape(-1, size)
