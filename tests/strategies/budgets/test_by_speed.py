"""Speed levels."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fedhet.population.profile import Profile
from fedhet.types import Budget
from strategies.budgets.by_speed import BySpeed

Make = Callable[..., Any]
POLICY = BySpeed([0.1, 0.5], [40, 20, 5], [16, 8, 2], [1.0, 0.5, 0.25], batch=10)


@pytest.mark.parametrize(
    ("seconds_per_step", "want"),
    [
        (0.01, Budget(40, 16, 1.0)),
        (0.1, Budget(40, 16, 1.0)),
        (0.11, Budget(20, 8, 0.5)),
        (0.5, Budget(20, 8, 0.5)),
        (3.0, Budget(5, 2, 0.25)),
    ],
)
def test_the_observed_speed_chooses_the_level(seconds_per_step: float, want: Budget, fake_view: Make) -> None:
    seen = {0: SimpleNamespace(finished=1, failed=0, seconds_per_step=seconds_per_step)}
    profiles = {0: Profile(sec_per_step=99.0)}
    assert POLICY(0, fake_view(seen=seen, profiles=profiles)) == want


@pytest.mark.parametrize(
    ("profile", "steps"),
    [(Profile(sec_per_step=0.05), 40), (Profile(sec_per_sample=0.03), 20), (Profile(flops_per_s=1e12), 5)],
)
def test_before_that_the_declared_speed_does(profile: Profile, steps: int, fake_view: Make) -> None:
    assert POLICY(0, fake_view(profiles={0: profile})).steps == steps


def test_a_single_value_holds_for_all_levels(fake_view: Make) -> None:
    policy = BySpeed([0.1], [3], [4], [1.0, 0.5])
    budgets = [policy(0, fake_view(profiles={0: Profile(sec_per_step=s)})) for s in (0.05, 0.2)]
    assert budgets == [Budget(3, 4, 1.0), Budget(3, 4, 0.5)]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("limits", {"limits": [0.5, 0.1]}),
        ("limits", {"limits": [0.0]}),
        ("steps", {"limits": [0.1, 0.2], "steps": [1, 2]}),
        ("steps", {"steps": [0]}),
        ("ranks", {"ranks": [-1]}),
        ("widths", {"widths": [1.5]}),
        ("batch=0", {"batch": 0}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        BySpeed(**arguments)
