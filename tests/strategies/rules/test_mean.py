"""The mean with its three denominators."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.numerics.tree import FlatTree, Schema, scaled, weighted_sum
from fedhet.types import Budget, Job, Update
from strategies.rules.mean import Mean

Make = Callable[..., Any]
SPACE: Any = SimpleNamespace(combine=lambda deltas, c, s: weighted_sum(deltas, scaled(c, s)), gram=None)


def update(client: int, values: list[float], weight: float, scale: float = 1.0, steps: int = 1) -> Update:
    leaf = torch.tensor(values)
    tree = FlatTree(Schema.of({"w": leaf}), leaf)
    return Update(Job(client, client, 0, 0, Budget(steps), 0.0), tree, weight, scale)


def combined(rule: Mean, updates: list[Update], view: Any) -> list[float]:
    return [float(x) for x in rule(updates, SPACE, view)["w"]]


def test_over_the_cohort_the_weights_add_up_to_one(fake_view: Make) -> None:
    view = fake_view(examples={0: 10, 1: 30, 2: 60})
    got = combined(Mean(), [update(0, [4.0, 0.0], 10), update(1, [0.0, 8.0], 30)], view)
    assert got == [1.0, 6.0]


def test_over_the_population_a_small_group_moves_the_model_by_its_share(fake_view: Make) -> None:
    view = fake_view(examples={0: 10, 1: 30, 2: 40})
    got = combined(Mean("population"), [update(0, [8.0], 10), update(1, [8.0], 30)], view)
    assert got == [4.0]
    assert combined(Mean("population", uniform=True), [update(0, [6.0], 10)], view) == [2.0]


def test_over_the_population_a_full_cohort_gives_the_same_bits_as_over_the_cohort(fake_view: Make) -> None:
    counts = {c: 7 * c + 3 for c in range(9)}
    ups = [update(c, [0.1 * c, 1.0 / (c + 1)], n) for c, n in counts.items()]
    view = fake_view(examples=counts)
    assert combined(Mean("population"), ups, view) == combined(Mean("cohort"), ups, view)


def test_over_the_count_weights_play_no_part(fake_view: Make) -> None:
    got = combined(Mean("count"), [update(0, [3.0], 1), update(1, [9.0], 99), update(1, [6.0], 5)], fake_view())
    assert got == [6.0]


@pytest.mark.parametrize("over", ["cohort", "population", "count"])
@pytest.mark.parametrize("uniform", [False, True])
def test_scale_is_never_normalised_away(over: str, uniform: bool, fake_view: Make) -> None:
    view = fake_view(examples={0: 4, 1: 4})
    whole = combined(Mean(over, uniform), [update(0, [1.0], 4), update(1, [1.0], 4)], view)
    half = combined(Mean(over, uniform), [update(0, [1.0], 4, 0.5), update(1, [1.0], 4, 0.5)], view)
    assert half == [0.5 * x for x in whole] and whole == [1.0]


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=8))
def test_the_mean_agrees_with_float64(fake_view: Make, pairs: list[tuple[int, float]]) -> None:
    ups = [update(i, [x], n) for i, (n, x) in enumerate(pairs)]
    n, x = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    assert combined(Mean(), ups, fake_view())[0] == pytest.approx(float(n @ x / n.sum()), rel=1e-4, abs=1e-2)


def test_weights_that_add_up_to_nothing_are_refused(fake_view: Make) -> None:
    with pytest.raises(ValueError, match="uniform=True"):
        combined(Mean(), [update(0, [1.0], 0)], fake_view())
    assert combined(Mean(uniform=True), [update(0, [1.0], 0)], fake_view()) == [1.0]


def test_an_unknown_denominator_is_named() -> None:
    with pytest.raises(ValueError, match=r"over=.all..*cohort, population, count"):
        Mean("all")


def test_the_mean_needs_no_sight_of_single_updates() -> None:
    assert Mean.needs == frozenset()
