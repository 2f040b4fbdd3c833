"""The top eigenvalue of the covariance of weighted rows, from their Gram matrix.

For weights w that add up to 1 the centred Gram matrix is Kc = (I - 1w') K (I - 1w')', and A = diag(sqrt w) Kc
diag(sqrt w) has the non-zero eigenvalues of the covariance sum_i w_i (x_i - m)(x_i - m)'.
"""

from __future__ import annotations

import numpy as np

from strategies.rules.ties import LEVEL, ranks


def centred(gram: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Inner products of x_i - m with m = sum_i w_i x_i; shape (n, n)."""
    product = gram @ w
    result: np.ndarray = gram - product[:, None] - product[None, :] + w @ product
    return result


def principal(gram: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest eigenvalue of the weighted covariance, and each row's squared projection on its eigenvector, (n,).

    If further eigenvalues tie with it, the projection is on all of their eigenvectors.
    """
    around, root = centred(gram, w), np.sqrt(w)
    values, vectors = np.linalg.eigh(around * np.outer(root, root))
    value = float(values[-1])
    size = float(w @ np.diag(gram))
    if value <= LEVEL * size:
        return 0.0, np.zeros(len(w))
    top = vectors[:, ranks(-values, np.array(size)) == 0]
    extents: np.ndarray = ((around @ (root[:, None] * top)) ** 2).sum(axis=1) / value
    return value, extents
