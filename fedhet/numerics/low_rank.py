"""A matrix as a product of two thin ones: the best of a rank, or as many columns as stand out from rounding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIRECT = 1024
"""Up to this smaller side a matrix is decomposed whole; above, by products with few columns."""

SPARE, PASSES = 16, 4
"""Columns beyond those wanted, and power iterations, of a decomposition by random products."""


class Factors(NamedTuple):
    """left (d, r) @ right (r, k), float32; `lost` is the share of the matrix's Frobenius norm that is not in it."""

    left: Tensor
    right: Tensor
    lost: float

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])


def factored(matrix: Tensor, floor: float, most: int | None = None) -> Factors:
    """The singular values of (d, k) `matrix` above `floor`, the `most` largest of them; their roots go to both sides.

    Large matrices are decomposed by Halko, Martinsson and Tropp, "Finding structure with randomness", arXiv:0909.4061,
    algorithm 4.4, with random numbers of a fixed seed and more columns until the floor is reached.
    """
    wide = matrix.double()
    side, columns = min(wide.shape), (most or 64) + SPARE
    while True:
        if side <= max(DIRECT, columns):
            u, s, vt = torch.linalg.svd(wide, full_matrices=False)
            break
        u, s, vt = _sketched(wide, columns)
        if most is not None or float(s[-1]) <= floor:
            break
        columns *= 2
    rank = int((s > floor).sum())
    rank = max(1, rank if most is None else min(rank, most))
    whole = float(wide.square().sum())
    lost = max(0.0, whole - float(s[:rank].square().sum()))
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vt[:rank]
    return Factors(left.float().contiguous(), right.float().contiguous(), (lost / whole) ** 0.5 if whole else 0.0)


def padded(factors: Factors, rank: int) -> Factors:
    """The same product at a larger rank: columns and rows of zeros."""
    left = torch.zeros((len(factors.left), rank))
    right = torch.zeros((rank, factors.right.shape[1]))
    left[:, : factors.rank], right[: factors.rank] = factors.left, factors.right
    return Factors(left, right, factors.lost)


def _sketched(matrix: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(matrix @ torch.randn((matrix.shape[1], columns), generator=random, dtype=matrix.dtype))
    for _ in range(PASSES):
        z, _ = torch.linalg.qr(matrix.T @ q)
        q, _ = torch.linalg.qr(matrix @ z)
    u, s, vt = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    return q @ u, s, vt
