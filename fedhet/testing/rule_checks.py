"""The checks of a rule, on updates of known norm, weight and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.protocols import Rule
from fedhet.testing.checking import Check, close, ensure, option
from fedhet.testing.quadratic import FakeView, QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update

COUNT, DIM = 12, 7
SCHEMA = Schema((("weight", Leaf((2, 3), torch.float64)), ("bias", Leaf((1,), torch.float64))))
LONGEST = 1e14
"""The length of an update that passes the gate's limit (max_norm) with room to spare."""


def updates_of(rows: np.ndarray) -> list[Update]:
    """(n, DIM) rows as updates of n clients with weights between 1 and 8."""
    rng = np.random.default_rng(1)
    return [
        Update(
            Job(i, i, 0, 0, Budget(5), 0.0), FlatTree(SCHEMA, torch.from_numpy(row.copy())), float(rng.integers(1, 9))
        )
        for i, row in enumerate(rows)
    ]


def cloud(seed: int = 0) -> np.ndarray:
    """Updates of length about 2 around a common mean, two of them far away."""
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=DIM) + 0.4 * rng.normal(size=(COUNT, DIM))
    rows[[3, 8]] *= -4.0
    return rows


def combine(rule: Rule, updates: Sequence[Update]) -> np.ndarray:
    """The rule's answer as a vector (DIM,); its names, shapes and dtypes are checked."""
    space = option("space", "full")
    view = FakeView(equal_clients(QuadraticWorld([1.0] * COUNT, np.zeros(COUNT))), space)
    view.cohort = [u.job for u in updates]
    answer = rule(updates, space, view)
    found = Schema.of(answer)
    ensure(found == SCHEMA, f"the answer is {dict(found)}, the updates are {dict(SCHEMA)}")
    return np.concatenate([leaf.reshape(-1).numpy() for leaf in answer.values()])


def order(rule: Rule) -> None:
    """The order of updates does not matter."""
    updates = updates_of(cloud())
    shuffled = [updates[i] for i in np.random.default_rng(2).permutation(COUNT)]
    close(combine(rule, shuffled), combine(rule, updates), "the same updates in another order", 1e-7, 1e-9)


def agreement(rule: Rule) -> None:
    """Equal updates give that update."""
    row = 0.3 * np.random.default_rng(3).normal(size=DIM)
    close(combine(rule, updates_of(np.tile(row, (COUNT, 1)))), row, f"{COUNT} equal updates", 1e-6, 1e-9)


def length(rule: Rule) -> None:
    """Longer updates give a longer answer."""
    for factor in (1e-3, 1e3):
        expected = factor * combine(rule, updates_of(cloud()))
        found = combine(rule, updates_of(factor * cloud()))
        close(found, expected, f"updates {factor:g} times as long", 1e-5, 1e-6 * factor)


def scale(rule: Rule) -> None:
    """A scale is part of the update."""
    rows, scales = cloud(), np.random.default_rng(4).uniform(0.2, 2.0, COUNT)
    scaled = [replace(u, scale=float(s)) for u, s in zip(updates_of(rows), scales, strict=True)]
    expected = combine(rule, updates_of(rows * scales[:, None]))
    close(combine(rule, scaled), expected, "updates with a scale, and such that are as long", 1e-6, 1e-9)
    ensure(not np.allclose(expected, combine(rule, updates_of(rows))), "the answer does not depend on lengths at all")


def common_scale(rule: Rule) -> None:
    """One common scale is not normalised away."""
    updates = updates_of(cloud())
    halved = combine(rule, [replace(u, scale=0.5) for u in updates])
    close(halved, 0.5 * combine(rule, updates), "every update with scale 0.5", 1e-5, 1e-7)


def weights(rule: Rule) -> None:
    """Only proportions of weights count."""
    updates = updates_of(cloud())
    heavier = [replace(u, weight=7.0 * u.weight) for u in updates]
    close(combine(rule, heavier), combine(rule, updates), "every weight 7 times as large", 1e-7, 1e-9)


def repeat(rule: Rule) -> None:
    """Updates are left as they are, and the answer repeats."""
    updates = updates_of(cloud())
    first = combine(rule, updates)
    ensure(np.array_equal(combine(rule, updates), first), "the same updates give another answer at a second time")
    for update, row in zip(updates, cloud(), strict=True):
        flat = tree.flatten(update.delta)
        assert isinstance(flat, FlatTree)
        ensure(np.array_equal(flat.flat.numpy(), row), f"the update of client {update.job.client} was written to")


def extremes(rule: Rule) -> None:
    """Whatever passes the gate gives a finite answer: a client can send any of this, and an error ends the run."""
    rows, rng = cloud(), np.random.default_rng(5)
    longest = rows.copy()
    longest[2] = rng.normal(size=DIM) * LONGEST
    heavy = [replace(u, weight=1e12 if u.job.client == 2 else u.weight) for u in updates_of(rows)]
    tried = {
        "updates of zeros": updates_of(np.zeros((COUNT, DIM))),
        "one update of zeros": updates_of(np.concatenate([rows[:-1], np.zeros((1, DIM))])),
        f"one update of length {LONGEST:g}": updates_of(longest),
        "updates of length 1e-200": updates_of(1e-200 * rows),
        "one weight of 1e12": heavy,
        "one scale of 0": [replace(u, scale=0.0 if u.job.client == 2 else 1.0) for u in updates_of(rows)],
    }
    for what, updates in tried.items():
        try:
            found = combine(rule, updates)
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        ensure(bool(np.isfinite(found).all()), f"{what}: the answer is {found.tolist()}")


CHECKS: dict[str, Check] = {
    "order": order,
    "agreement": agreement,
    "length": length,
    "scale": scale,
    "common scale": common_scale,
    "weights": weights,
    "repeat": repeat,
    "extremes": extremes,
}
