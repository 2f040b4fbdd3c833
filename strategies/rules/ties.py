"""Comparisons that do not depend on rounding errors.

Numbers that are equal in exact arithmetic can differ by some units in the last place, in an order that depends on how
a sum is split, on threads and on the processor. Equal numbers are common: copies of one update, mixtures of the same
neighbours, two updates that are each other's nearest. Numbers that differ by rounding only therefore tie, and the first
one wins: updates are sorted by client and job.

Sorted numbers tie while no step from one to the next exceeds `LEVEL` times the terms they were formed from. Rounding to
fewer digits would put some equal numbers on two sides of a boundary, and "within a tolerance of each other" is not
transitive.
"""

from __future__ import annotations

import numpy as np

LEVEL = 2.0**-40
"""Tolerance, relative to the squared norms: some thousand times the rounding error of a squared distance."""


def ranks(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The rank of each value along the last axis, 0 for the lowest; tied values share a rank. Integers of the shape of
    `values`. `sizes` are the sums of the magnitudes of the terms of each value."""
    order = np.argsort(values, axis=-1, kind="stable")
    sizes = np.take_along_axis(np.broadcast_to(sizes, values.shape), order, axis=-1)
    steps = np.diff(np.take_along_axis(values, order, axis=-1), axis=-1)
    places = np.zeros(values.shape, np.intp)
    np.cumsum(steps > LEVEL * np.maximum(sizes[..., 1:], sizes[..., :-1]), axis=-1, out=places[..., 1:])
    result = np.empty_like(places)
    np.put_along_axis(result, order, places, axis=-1)
    return result


def lowest(values: np.ndarray, sizes: np.ndarray) -> int:
    """The index of the lowest of `values`, shape (n,); the first one of a tie."""
    return int(ranks(values, sizes).argmin())
