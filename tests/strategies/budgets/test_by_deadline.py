"""Steps that fit into a time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.budgets.by_deadline import ByDeadline

Make = Callable[..., Any]


def steps(policy: ByDeadline, seconds_per_step: float | None, fake_view: Make) -> int:
    seen = {0: SimpleNamespace(finished=1, failed=0, seconds_per_step=seconds_per_step)}
    return policy(0, fake_view(seen=seen)).steps


@given(st.floats(1e-4, 1e4), st.floats(1e-3, 1e3), st.integers(1, 50), st.integers(0, 500))
def test_steps_fit_unless_the_bounds_say_otherwise(
    fake_view: Make, s: float, seconds: float, least: int, more: int
) -> None:
    got = steps(ByDeadline(seconds, least, least, least + more), s, fake_view)
    assert least <= got <= least + more
    assert got == least or got * s <= seconds * (1 + 1e-6)
    assert got == least + more or (got + 1) * s > seconds * (1 - 1e-6)


def test_quotients_that_rounding_puts_just_below_an_integer_count_as_it(fake_view: Make) -> None:
    assert 0.3 / 0.1 < 3 and steps(ByDeadline(0.3), 0.1, fake_view) == 3


def test_before_anything_was_observed_the_first_steps_hold(fake_view: Make) -> None:
    assert steps(ByDeadline(5.0, 7, 1, 10), None, fake_view) == 7


def test_an_instant_client_gets_the_most_steps(fake_view: Make) -> None:
    assert steps(ByDeadline(5.0, 1, 1, 10), 0.0, fake_view) == 10


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("seconds=0", {"seconds": 0}),
        ("min_steps=0", {"min_steps": 0}),
        ("max_steps=2 is below min_steps=3", {"min_steps": 3, "max_steps": 2}),
        ("first_steps=9", {"first_steps": 9, "max_steps": 5}),
        ("rank=-1", {"rank": -1}),
        ("width=2", {"width": 2}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        ByDeadline(**arguments)
