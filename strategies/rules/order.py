"""Order statistics of single coordinates, on blocks (n, width)."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL = 64.0
"""Units in the last place up to which two distances are equal."""


def ordered(block: Tensor) -> Tensor:
    """Each column in ascending order, shape (n, width). The copy makes each column contiguous, which sorts faster."""
    columns = block.T.clone(memory_format=torch.contiguous_format).numpy()
    columns.sort(axis=1)
    return torch.from_numpy(columns).T.contiguous()


def middle(rows: Tensor) -> Tensor:
    """The median of sorted rows, (width,); for an even number, the mean of the two middle values."""
    n = len(rows)
    return rows[n // 2].clone() if n % 2 else rows[n // 2 - 1] * 0.5 + rows[n // 2] * 0.5


def trimmed(rows: Tensor, f: int) -> Tensor:
    """The mean of sorted rows without the f smallest and f largest, (width,)."""
    return rows[f : len(rows) - f].mean(0)


def mean_around(rows: Tensor, centre: Tensor, keep: int) -> Tensor:
    """The mean of the `keep` values nearest to the centre, per column, (width,).

    Of two equally distant values the smaller one is used; distances that differ by rounding of the centre or of mixed
    rows only are equal. In sorted rows the nearest values are a window. It moves past value k while k is farther from
    the centre than value k + keep. This holds for the first few k and no other, so counting them gives the window's
    start.
    """
    n = len(rows)
    first, sizes = torch.zeros(rows.shape[1], dtype=torch.int16), rows.abs() * (LEVEL * torch.finfo(rows.dtype).eps)
    for k in range(n - keep):
        first += (centre - rows[k]) - (rows[k + keep] - centre) > sizes[k] + sizes[k + keep]
    total = torch.zeros_like(rows[0])
    for i, row in enumerate(rows):
        total += row if n - keep <= i < keep else row * ((first <= i) & (first > i - keep))
    return total / keep
