"""TimelyFL's epochs and widths: all clients finish in time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.population.roster import Clients
from fedhet.testing.quadratic import FakeView, QuadraticWorld, Watched, equal_clients
from strategies.budgets.timely import Timely
from strategies.spaces.full import Full

NUMBERS = 250
STATE = FlatTree(Schema((("w", Leaf((NUMBERS,))),)), torch.zeros(NUMBERS))


def view(seconds: list[float], examples: int = 40, **columns: Any) -> FakeView:
    given = {"sec_per_step": np.array(seconds), "num_examples": np.full(len(seconds), examples), **columns}
    return FakeView(Clients.from_columns(len(seconds), given), Full(), STATE)


def test_the_published_rule_on_five_clients() -> None:
    """Ten steps an epoch: epochs take 1, 2, 3, 4, 10 s; with half a second of transfer the third needs 3.5 s."""
    v = view([0.1, 0.2, 0.3, 0.4, 1.0], uplink_bytes_per_s=4000.0, downlink_bytes_per_s=4000.0)
    budgets = [Timely(share=0.6, batch=4)(c, v) for c in range(5)]
    assert [b.steps for b in budgets] == [30, 10, 10, 10, 10]
    assert [b.width for b in budgets] == pytest.approx([1.0, 1.0, 1.0, 3.5 / 4.5, 3.5 / 10.5])


@given(st.lists(st.floats(0.01, 50.0), min_size=1, max_size=9), st.floats(0.05, 1.0), st.integers(1, 200))
def test_all_clients_finish_in_time_and_the_share_trains_the_full_model(
    seconds: list[float], share: float, examples: int
) -> None:
    v = view(seconds, examples)
    policy = Timely(share=share, batch=8, min_width=1e-6, max_epochs=10**6)
    epoch = math.ceil(examples / 8)
    limit = sorted(s * epoch for s in seconds)[math.ceil(share * len(seconds) - 1e-9) - 1]
    budgets = [policy(c, v) for c in range(len(seconds))]
    for s, b in zip(seconds, budgets, strict=True):
        assert b.steps % epoch == 0 and s * b.steps * b.width <= limit * (1 + 1e-6)
        assert b.width == 1.0 or b.steps == epoch, "nobody trains a part of the model for several epochs"
    assert sum(b.width == 1.0 for b in budgets) >= share * len(seconds) - 1e-6


def test_a_time_that_is_given_is_kept_and_bounds_hold() -> None:
    v = view([0.1, 10.0])
    fast, slow = (Timely(seconds=5.0, batch=4, max_epochs=3, min_width=0.2)(c, v) for c in (0, 1))
    assert (fast.steps, fast.width) == (30, 1.0) and (slow.steps, slow.width) == (10, 0.2)


def test_transfer_that_takes_longer_than_the_time_leaves_one_epoch() -> None:
    budget = Timely(seconds=1.0, batch=4)(0, view([0.01], uplink_bytes_per_s=100.0))
    assert budget.steps == 10 and budget.width == pytest.approx(1.0 / 10.1)


def test_clients_that_declare_operations_alone_wait_for_an_observation() -> None:
    fleet = Clients.from_columns(2, {"flops_per_s": 1e9, "num_examples": np.full(2, 40)})
    v = FakeView(fleet, Full(), STATE)
    policy = Timely(batch=4)
    assert policy(0, v).steps == 10 and policy(0, v).width == 1.0
    v.watched[0] = Watched(1, 0, 0.1)
    v.watched[1] = Watched(1, 0, 0.4)
    assert policy(0, v).steps == 10 and policy(1, v).width == pytest.approx(0.25)


def test_a_large_fleet_is_sampled_evenly() -> None:
    count = 10_000
    world = QuadraticWorld([1.0] * count, np.zeros(count))
    fleet = equal_clients(world, sec_per_step=np.linspace(0.1, 1.0, count))
    v = FakeView(fleet, Full(), STATE)
    policy = Timely(share=0.5, batch=10, sample=64)
    assert policy(count - 1, v).width == pytest.approx(0.55, abs=0.02)
    assert len(fleet._cache) <= 70


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("share=0", {"share": 0.0}),
        ("seconds=-1", {"seconds": -1.0}),
        ("batch=0", {"batch": 0}),
        ("max_epochs=0", {"max_epochs": 0}),
        ("sample=0", {"sample": 0}),
        ("min_width=0", {"min_width": 0.0}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        Timely(**arguments)
