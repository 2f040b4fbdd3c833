"""Inner products of long vectors, one chunk of columns at a time: numpy alone, so that a bare process can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

CHUNK = 1 << 15
"""Columns converted to float64 at a time. Where chunks begin decides rounding, so it depends on nothing."""


def partials(
    rows: Sequence[Any], width: int, fill: Callable[[np.ndarray, Any], object] = np.copyto
) -> Iterator[np.ndarray]:
    """The share of each chunk in all inner products, (n, n) float64 and new; added up in this order, the Gram matrix.

    `rows` are n vectors of `width` numbers; `fill(line, part)` copies a part of one into a line of float64.
    """
    room = np.empty((len(rows), min(CHUNK, width)))
    for at in range(0, width, CHUNK):
        block = room[:, : width - at]
        for line, row in zip(block, rows, strict=True):
            fill(line, row[at : at + CHUNK])
        yield block @ block.T  # of the same memory: BLAS computes one triangle
