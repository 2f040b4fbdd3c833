"""Helpers of partitions: shuffled pools per class, rounding of shares to integers, assignment of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clients.data.dataset import DataError, Dataset
from clients.data.partition import NOBODY

TINY = 1e-12
"""Added to Dirichlet concentrations and draws: the smallest would underflow to 0/0."""

TRIES = 1000
"""Largest number of draws of a partition in which every client must have enough samples."""


def enough(dataset: Dataset, clients: int, least: int = 1) -> int:
    """Number of training samples. Raises DataError if they are not `least` for each of the clients."""
    size = len(dataset.x_train)
    if not 1 <= clients <= size:
        raise DataError(f"{clients} clients cannot share {size} samples: set fleet.clients to 1 to {size}")
    if least * clients > size:
        raise DataError(
            f"min_size={least} for {clients} clients needs {least * clients} samples, {dataset.name} has {size}: set "
            f"partition.min_size to at most {size // clients}"
        )
    return size


def by_class(dataset: Dataset, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled sample numbers of each class."""
    labels = dataset.labels
    return [rng.permutation(np.flatnonzero(labels == c)) for c in range(dataset.classes)]


def at_ends(shares: np.ndarray, size: int) -> np.ndarray:
    """Integers with sum `size` in proportion to `shares` (sum 1): differences of the floored cumulative shares, each
    within one of its share."""
    ends = np.floor(np.cumsum(shares) * size + 1e-9).astype(np.int64)
    ends[-1] = size
    return np.diff(np.minimum(ends, size), prepend=0)


def rounded_down(shares: np.ndarray, size: int) -> np.ndarray:
    """Integers with sum `size`: each share rounded down, the last one takes the remainder."""
    counts = np.floor(shares * size + 1e-9).astype(np.int64)
    counts[-1] = size - counts[:-1].sum()
    return counts


def deal(pools: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> np.ndarray:
    """The owner of each sample: client i gets the next counts[c][i] samples of pool c. Pools cover all samples."""
    owner = np.full(sum(map(len, pools)), NOBODY, np.int32)
    for pool, row in zip(pools, counts, strict=True):
        owner[pool[: row.sum()]] = np.repeat(np.arange(len(row), dtype=np.int32), row)
    return owner


def top_up(owner: np.ndarray, clients: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """Move random samples from the largest clients to those with fewer than `least`, until all have enough."""
    owner, counts = owner.copy(), np.bincount(owner[owner != NOBODY], minlength=clients)
    for short in np.flatnonzero(counts < least):
        while counts[short] < least:
            rich = int(counts.argmax())
            moved = min(least - counts[short], counts[rich] - least)
            owner[rng.choice(np.flatnonzero(owner == rich), moved, replace=False)] = short
            counts[short], counts[rich] = counts[short] + moved, counts[rich] - moved
    return owner


def positive(name: str, value: float) -> None:
    """Raises DataError unless the value is a positive finite number."""
    if not 0 < value < np.inf:
        raise DataError(f"{name}={value} must be a positive number")


def at_least(name: str, value: int, least: int) -> None:
    """Raises DataError if an integer is too small."""
    if value < least:
        raise DataError(f"{name}={value} must be at least {least}")
