"""Staleness discounts of every form, and their sign."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.types import Budget, Job, Update
from strategies.staleness.discount import Constant, Exponential, Hinge, Inverse, Polynomial, Sigmoid

number = st.floats(0.0, 5.0)
positive = st.floats(0.1, 50.0)
forms = st.one_of(
    st.just(Constant()),
    st.builds(Polynomial, number),
    st.builds(Hinge, number, positive),
    st.builds(Exponential, positive),
    st.builds(Sigmoid, number, positive),
    st.builds(Inverse, positive),
)


@given(forms)
def test_fresh_updates_have_factor_one_and_factors_never_increase(form: Any) -> None:
    values = [form.factor(u) for u in range(200)]
    assert values[0] == 1.0
    assert all(0.0 < b <= a <= 1.0 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("form", [Polynomial(), Hinge(), Exponential(), Sigmoid(), Inverse()])
def test_old_updates_are_weakened_not_amplified(form: Any) -> None:
    assert form.factor(50) < 0.5


def test_known_values() -> None:
    assert Polynomial(0.5).factor(3) == 0.5
    assert Polynomial(0.0).factor(99) == 1.0
    assert Hinge(10.0, 4.0).factor(4) == 1.0 and Hinge(10.0, 4.0).factor(5) == 1 / 11
    assert Exponential(20.0).factor(20) == 0.5
    assert Inverse(10.0).factor(10) == 0.5
    at_zero, in_the_middle = 1 / (1 + math.exp(-0.25 * 10)), 1 / 2
    assert Sigmoid(0.25, 10.0).factor(10) == pytest.approx(in_the_middle / at_zero)


def test_staleness_is_a_difference_of_versions_and_scales_what_is_there(fake_view: Callable[..., Any]) -> None:
    update = Update(Job(0, 0, 4, 0, Budget(), 0.0), {"w": torch.ones(2)}, 7.0, 0.5)
    late = Polynomial().arrive(update, fake_view(version=7), {})
    assert late.scale == 0.25 and late.weight == 7.0 and late.delta is update.delta
    assert Polynomial().arrive(update, fake_view(version=4), {}).scale == 0.5


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Polynomial(-0.5), "a=-0.5"),
        (lambda: Hinge(a=-1.0), "a=-1.0"),
        (lambda: Hinge(b=-1.0), "b=-1.0"),
        (lambda: Exponential(0.0), "half_life=0.0"),
        (lambda: Sigmoid(a=-0.1), "a=-0.1"),
        (lambda: Sigmoid(100.0, 10.0), "a=100.0"),
        (lambda: Inverse(0.0), "bound=0.0"),
        (lambda: Polynomial(math.inf), "a=inf"),
    ],
)
def test_parameters_that_would_amplify_are_refused(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make()
