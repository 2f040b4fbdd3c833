"""What every rule promises, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.testing.quadratic import FakeView, QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update
from strategies.spaces.full import Full

AXES = ("rule",)
COUNT, DIM = 12, 7
SCHEMA = Schema((("weight", Leaf((2, 3), torch.float64)), ("bias", Leaf((1,), torch.float64))))

ORDER_MATTERS = {"bucketing": "buckets are drawn over positions; the server puts updates in order first"}
OF_ALL = {name: "divides by the samples of all clients" for name in ("mean_population", "fednova_population")}
NOT_THE_COMMON_ONE = {**OF_ALL, "colluding": "attackers replace their updates"}
ABSOLUTE = {"clipping": "its radius is a length", "colluding": "an attack may send a vector of fixed length"}


def updates_of(rows: np.ndarray) -> list[Update]:
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
    rows = rng.normal(size=DIM) + 0.4 * rng.normal(size=(COUNT, DIM))
    rows[[3, 8]] *= -4.0
    return rows


def combine(rule: Any, updates: Sequence[Update]) -> np.ndarray:
    space = Full()
    view = FakeView(equal_clients(QuadraticWorld([1.0] * COUNT, np.zeros(COUNT))), space)
    view.cohort = [u.job for u in updates]
    answer = rule(updates, space, view)
    assert Schema.of(answer) == SCHEMA
    return np.concatenate([leaf.reshape(-1).numpy() for leaf in answer.values()])


def skip(option: str, exceptions: dict[str, str]) -> None:
    name = option.partition("/")[2]
    if name in exceptions:
        pytest.skip(f"{name}: {exceptions[name]}")


@pytest.fixture
def rule(option: str, build: Callable[[str], Any]) -> Any:
    return build(option)


def test_the_order_of_updates_does_not_matter(option: str, rule: Any) -> None:
    skip(option, ORDER_MATTERS)
    updates = updates_of(cloud())
    shuffled = [updates[i] for i in np.random.default_rng(2).permutation(COUNT)]
    np.testing.assert_allclose(combine(rule, shuffled), combine(rule, updates), rtol=1e-7, atol=1e-9)


def test_equal_updates_give_that_update(option: str, rule: Any) -> None:
    skip(option, NOT_THE_COMMON_ONE)
    row = 0.3 * np.random.default_rng(3).normal(size=DIM)
    np.testing.assert_allclose(combine(rule, updates_of(np.tile(row, (COUNT, 1)))), row, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_longer_updates_give_a_longer_answer(option: str, rule: Any, factor: float) -> None:
    skip(option, ABSOLUTE)
    expected = factor * combine(rule, updates_of(cloud()))
    np.testing.assert_allclose(combine(rule, updates_of(factor * cloud())), expected, rtol=1e-5, atol=1e-6 * factor)


def test_a_scale_is_part_of_the_update(option: str, rule: Any) -> None:
    rows, scales = cloud(), np.random.default_rng(4).uniform(0.2, 2.0, COUNT)
    scaled = [replace(u, scale=float(s)) for u, s in zip(updates_of(rows), scales, strict=True)]
    expected = combine(rule, updates_of(rows * scales[:, None]))
    np.testing.assert_allclose(combine(rule, scaled), expected, rtol=1e-6, atol=1e-9)
    assert not np.allclose(expected, combine(rule, updates_of(rows)))


def test_one_common_scale_is_not_normalised_away(option: str, rule: Any) -> None:
    skip(option, ABSOLUTE)
    updates = updates_of(cloud())
    halved = combine(rule, [replace(u, scale=0.5) for u in updates])
    np.testing.assert_allclose(halved, 0.5 * combine(rule, updates), rtol=1e-5, atol=1e-7)


def test_only_proportions_of_weights_count(option: str, rule: Any) -> None:
    skip(option, OF_ALL)
    updates = updates_of(cloud())
    heavier = [replace(u, weight=7.0 * u.weight) for u in updates]
    np.testing.assert_allclose(combine(rule, heavier), combine(rule, updates), rtol=1e-7, atol=1e-9)


def test_updates_are_left_as_they_are_and_the_answer_repeats(option: str, rule: Any) -> None:
    updates = updates_of(cloud())
    first = combine(rule, updates)
    assert np.array_equal(combine(rule, updates), first)
    for update, row in zip(updates, cloud(), strict=True):
        assert np.array_equal(tree.flatten(update.delta).flat.numpy(), row)  # type: ignore[attr-defined]
