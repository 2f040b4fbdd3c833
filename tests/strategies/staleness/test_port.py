"""Port: weights by staleness and direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedhet.types import Budget, Job, Memory, Update
from strategies.staleness.port import Port, cosine

Make = Callable[..., Any]


def update(values: list[float], version: int = 0) -> Update:
    return Update(Job(0, 0, version, 0, Budget(), 0.0), {"w": torch.tensor(values)}, 8.0, 0.5)


def test_before_the_first_step_only_age_counts(fake_view: Make) -> None:
    view = fake_view(version=10, state={"w": torch.zeros(2)})
    late, fresh = (Port().arrive(update([1.0, 0.0], v), view, {}) for v in (0, 10))
    assert late.weight == 8.0 * 3.0 * 0.5 and fresh.weight == 8.0 * 3.0
    assert late.scale == 0.5 and torch.equal(late.delta["w"], torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(("direction", "gain"), [([2.0, 0.0], 1.0), ([0.0, 5.0], 0.5), ([-1.0, 0.0], 0.0)])
def test_answers_along_the_last_step_weigh_more(direction: list[float], gain: float, fake_view: Make) -> None:
    memory, layer = Memory(), Port(similarity=2.0)
    delta = {"w": torch.tensor([0.3, 0.0])}
    assert layer.finish(delta, fake_view(version=0, state={"w": torch.tensor([1.0, 1.0])}), memory) is delta
    view = fake_view(version=1, state={"w": torch.tensor([1.3, 1.0])})
    got = layer.arrive(update(direction, 1), view, memory).weight
    assert got == pytest.approx(8.0 * (3.0 + 2.0 * gain), rel=1e-5)


def test_the_angle_with_nothing_is_right() -> None:
    assert cosine(torch.zeros(3), torch.ones(3)) == 0.0
    assert cosine(torch.ones(3), torch.ones(3)) == pytest.approx(1.0)


@pytest.mark.parametrize("field", ["similarity=-1", "freshness=0", "bound=0"])
def test_values_out_of_range_are_named(field: str) -> None:
    name, value = field.split("=")
    with pytest.raises(ValueError, match=field):
        Port(**{name: int(value)})
