"""The same budget for all clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedhet.types import Budget
from strategies.budgets.fixed import Fixed


def test_epochs_count_a_partial_batch_as_a_step(fake_view: Callable[..., Any]) -> None:
    view = fake_view(examples={0: 64, 1: 65, 2: 1, 3: 0})
    assert [Fixed(epochs=3, batch=32)(c, view).steps for c in range(4)] == [6, 9, 3, 3]


def test_steps_rank_and_width_are_passed_on(fake_view: Callable[..., Any]) -> None:
    assert Fixed(steps=7, rank=4, width=0.5)(0, fake_view()) == Budget(7, 4, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one epoch, without steps, needs batch"),
        ({"steps": 1, "epochs": 1, "batch": 1}, "give one of them"),
        ({"epochs": 1}, "needs batch"),
        ({"steps": 0}, "steps=0"),
        ({"epochs": 1, "batch": 0}, "batch=0"),
        ({"steps": 1, "rank": -1}, "rank=-1"),
        ({"steps": 1, "width": 0.0}, "width=0.0"),
    ],
)
def test_values_that_make_no_sense_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fixed(**arguments)


def test_without_a_number_it_is_one_epoch(fake_view: Callable[..., Any]) -> None:
    view = fake_view(examples={0: 64, 1: 65, 2: 1, 3: 0})
    assert [Fixed(batch=32)(c, view) for c in range(4)] == [Fixed(epochs=1, batch=32)(c, view) for c in range(4)]
