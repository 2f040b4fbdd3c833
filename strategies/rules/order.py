"""Order statistics of single coordinates, on blocks (n, width)."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL = 64.0
"""Units in the last place up to which two distances are equal."""


def ordered(block: Tensor) -> Tensor:
    """Each column sorted upwards, shape (n, width). Short rows that lie together sort fastest."""
    columns = block.T.clone(memory_format=torch.contiguous_format).numpy()
    columns.sort(axis=1)
    return torch.from_numpy(columns).T.contiguous()


def middle(rows: Tensor) -> Tensor:
    """The median of sorted rows, (width,): of an even number, the mean of the two in the middle."""
    n = len(rows)
    return rows[n // 2].clone() if n % 2 else rows[n // 2 - 1] * 0.5 + rows[n // 2] * 0.5


def trimmed(rows: Tensor, f: int) -> Tensor:
    """The mean of sorted rows without the f smallest and f largest, (width,)."""
    return rows[f : len(rows) - f].mean(0)


def mean_around(rows: Tensor, centre: Tensor, keep: int) -> Tensor:
    """The mean of the `keep` values nearest to the centre, per column; of two equally far the smaller is kept. Equally
    far are those that rounding of the centre, or of the rows where they are mixtures, may have told apart.

    In sorted rows these are a window. It moves up past value k as long as k is farther from the centre than the value
    that would come in, k + keep; that is true of the first few k and then of none, so counting finds the place.
    """
    n = len(rows)
    first, sizes = torch.zeros(rows.shape[1], dtype=torch.int16), rows.abs() * (LEVEL * torch.finfo(rows.dtype).eps)
    for k in range(n - keep):
        first += (centre - rows[k]) - (rows[k + keep] - centre) > sizes[k] + sizes[k + keep]
    total = torch.zeros_like(rows[0])
    for i, row in enumerate(rows):
        total += row if n - keep <= i < keep else row * ((first <= i) & (first > i - keep))
    return total / keep
