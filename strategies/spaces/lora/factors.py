"""Sums, inner products and truncations of matrices given by their factors, without forming a (d, k) matrix.

A `Pair` represents left @ right. With left_i (d, r_i) concatenated along columns and c_i right_i along rows

    [left_1 ... left_n] [c_1 right_1; ...; c_n right_n] = sum_i c_i left_i right_i

so a sum is a copy, exact for any ranks: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with
Heterogeneous Low-Rank Adaptations", arXiv:2409.05976. <l r, l' r'> = sum((l^T l') * (r r'^T)). The best
approximation of lower rank comes from QR of both factors and an SVD of (R, R): Ramesh and Dass, "FLoRIST: Singular
Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large Language Models", arXiv:2506.09199.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedhet.numerics import stacking

BLOCK = 1 << 21
"""Elements of a product that are computed at a time, in float64, when it is added to a weight: they fit in cache."""

SURE = 2.0**-38
"""Share of the largest eigenvalue that no rounding of a Gram matrix reaches; its root is far above what `compress`
drops."""


class Pair(NamedTuple):
    """left (d, r) @ right (r, k)."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Columns of left: at least the rank of the product."""
        return int(self.left.shape[1])

    @property
    def size(self) -> int:
        """Numbers of both factors."""
        return self.left.numel() + self.right.numel()

    @property
    def dense(self) -> Tensor:
        """The product (d, k), float64."""
        return self.left.double() @ self.right.double()


def stack(pairs: Sequence[Pair], coefficients: Sequence[float], out: Pair | None = None) -> Pair:
    """sum_i coefficients[i] * pairs[i], of rank sum_i r_i, in `out` if given; the right factors are scaled."""
    rank, (left, right) = sum(p.rank for p in pairs), pairs[0]
    room = out or Pair(left.new_empty((len(left), rank)), right.new_empty((rank, right.shape[1])))
    stacking.stack([p.left for p in pairs], room.left, dim=1)
    stacking.stack([p.right for p in pairs], room.right, coefficients, dim=0)
    return room


def gram(pairs: Sequence[Pair]) -> np.ndarray:
    """Frobenius inner products of the products, (n, n) float64, exactly symmetric; ranks may differ."""
    left = torch.cat([p.left.double() for p in pairs], 1)
    right = torch.cat([p.right.double() for p in pairs], 0)
    both = ((left.T @ left) * (right @ right.T)).numpy()
    member = np.repeat(np.eye(len(pairs)), [p.rank for p in pairs], axis=1)
    sums = member @ both @ member.T
    result: np.ndarray = (sums + sums.T) / 2
    return result


def norm(pair: Pair) -> float:
    """Frobenius norm of the product, O((d + k) r^2)."""
    return float(np.sqrt(max(0.0, gram([pair])[0, 0])))


def compress(pair: Pair, *, energy: float = 1.0, rank: int | None = None, floor: float = 0.0) -> tuple[Pair, float]:
    """The product in its smallest form, and its relative Frobenius error.

    The smallest number of singular values with the share `energy` of the sum of squares is used, at most `rank` and at
    least one; those within rounding of zero, or not above `floor`, are dropped. Both factors get the square root of the
    singular values. QR and SVD are in float64 and signs are fixed, so equal inputs give equal results.
    """
    if pair.rank == 0:
        return pair, 0.0
    left, right = pair.left.double(), pair.right.double()
    if pair.rank >= min(left.shape[0], right.shape[1]):
        u, s, vt = torch.linalg.svd(left @ right, full_matrices=False)
    else:
        ql, rl = torch.linalg.qr(left)
        qr, rr = torch.linalg.qr(right.T)
        u, s, vt = torch.linalg.svd(rl @ rr.T)
        u, vt = ql @ u, vt @ qr.T
    kind = pair.left.dtype
    small = float(s[0]) * (2.0**-23 if kind != torch.float64 else 2.0**-52 * max(left.shape[0], right.shape[1]))
    kept = _kept(s, energy, rank, max(floor, small))
    squares = s * s
    total = float(squares.sum())
    lost = (float(squares[kept:].sum()) / total) ** 0.5 if total > 0 else 0.0
    u, s, vt = u[:, :kept], s[:kept], vt[:kept]
    top = u.abs().argmax(0)
    sign = torch.where(u[top, torch.arange(kept)] < 0, -1.0, 1.0).double()
    root = s.sqrt() * sign
    return Pair((u * root).to(kind).contiguous(), (vt * root[:, None]).to(kind).contiguous()), lost


def _kept(s: Tensor, energy: float, rank: int | None, floor: float) -> int:
    """The number of singular values (in descending order) to use."""
    kept = int((s > floor).sum())
    if energy < 1.0:
        below = torch.cumsum(s * s, 0) < energy * float((s * s).sum())
        kept = min(kept, int(below.sum()) + 1)
    return max(1, kept if rank is None else min(kept, rank))


def incompressible(pair: Pair) -> bool:
    """A sufficient test, at a tenth of the cost of `compress`, that it would retain every column; False is no
    statement.

    The squares of the product's singular values are the eigenvalues of (left^T left) (right right^T). Columns are first
    brought to length one, with their lengths on the other side.
    """
    left, right = pair.left.double(), pair.right.double()
    of_left, of_right = left.T @ left, right @ right.T
    lengths = of_left.diagonal().sqrt()
    scales = lengths[:, None] * lengths
    root, failed = torch.linalg.cholesky_ex(of_left / scales)
    if pair.rank == 0 or failed or not bool(scales.all()):
        return False
    of_right = of_right * scales
    largest = torch.linalg.matrix_norm(root, 2) ** 2 * torch.linalg.matrix_norm(of_right, 2)
    return bool(torch.linalg.eigvalsh(root.T @ of_right @ root)[0] > SURE * largest)


def added(weight: Tensor, pair: Pair, out: Tensor | None = None) -> Tensor:
    """weight + left @ right, of weight's shape (d, ...) and dtype: a new tensor, or contiguous `out`, which may be
    `weight` itself.

    Every element is summed in float64 and rounded once, so that two machines get the same result.
    """
    result = torch.empty_like(weight, memory_format=torch.contiguous_format) if out is None else out
    before, flat = (w.detach().reshape(w.shape[0], -1) for w in (weight, result))
    left, right = pair.left.double(), pair.right.double()
    rows = max(1, BLOCK // max(1, flat.shape[1]))
    room = torch.empty((min(rows, flat.shape[0]), flat.shape[1]), dtype=torch.float64)
    for at in range(0, flat.shape[0], rows):
        part = room[: flat.shape[0] - at]
        part.copy_(before[at : at + rows]).addmm_(left[at : at + rows], right)
        flat[at : at + rows].copy_(part)
    return result
