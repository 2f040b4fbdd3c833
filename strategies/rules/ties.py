"""Comparisons that rounding does not decide.

Numbers that are equal in exact arithmetic come out some units in the last place apart, in an order that depends on how
a sum was split up, on threads and on the processor. And equal they often are: copies of one update, mixtures of the
same neighbours, two that are each other's nearest. So numbers that lie closer together than rounding can tell are
level, and of those the first goes first: updates are sorted by client and job.

Sorted, numbers are level as long as no step from one to the next exceeds `LEVEL` of the terms they were formed from.
Numbers that are equal but for rounding are then level wherever they lie; rounded to fewer digits, some would fall on
two sides of a boundary. "Within a tolerance of each other" would be no order: it is not transitive.
"""

from __future__ import annotations

import numpy as np

LEVEL = 2.0**-40
"""Some thousand times what rounding does to a squared distance, as a share of the squared norms it is formed from."""


def ranks(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The place of each value along the last axis, 0 for the lowest; values that are level share one. Integers, of the
    shape of `values`. `sizes` are the sums of the magnitudes of the terms behind each value."""
    order = np.argsort(values, axis=-1, kind="stable")
    sizes = np.take_along_axis(np.broadcast_to(sizes, values.shape), order, axis=-1)
    steps = np.diff(np.take_along_axis(values, order, axis=-1), axis=-1)
    places = np.zeros(values.shape, np.intp)
    np.cumsum(steps > LEVEL * np.maximum(sizes[..., 1:], sizes[..., :-1]), axis=-1, out=places[..., 1:])
    result = np.empty_like(places)
    np.put_along_axis(result, order, places, axis=-1)
    return result


def lowest(values: np.ndarray, sizes: np.ndarray) -> int:
    """The index of the lowest value, (n,); the first of those that are level with it."""
    return int(ranks(values, sizes).argmin())
