"""Server SGD and momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedhet.numerics.tree import FlatTree, Schema
from fedhet.types import Budget, Job, Memory
from strategies.optimizers.sgd import Momentum, Sgd

Make = Callable[..., Any]


def flat(*values: float) -> FlatTree:
    leaf = torch.tensor(values)
    return FlatTree(Schema.of({"w": leaf}), leaf)


def test_rate_one_gives_the_update_itself(fake_view: Make) -> None:
    delta = flat(0.1, 0.2)
    assert Sgd(1.0).finish(delta, fake_view(), {}) is delta
    assert Sgd(0.5).finish(delta, fake_view(), {})["w"].tolist() == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize("plain", [False, True])
def test_momentum_follows_its_recursion_and_leaves_its_input_alone(plain: bool, fake_view: Make) -> None:
    memory: Memory = {}
    layer, velocity = Momentum(0.5, 0.9), 0.0
    for value in (1.0, -2.0, 0.25, 4.0):
        delta: Any = {"w": torch.tensor([value])} if plain else flat(value)
        velocity = 0.9 * velocity + value
        assert float(layer.finish(delta, fake_view(), memory)["w"]) == pytest.approx(0.5 * velocity)
        assert float(delta["w"]) == value


def test_momentum_zero_gives_the_same_bits_as_plain_sgd(fake_view: Make) -> None:
    memory: Memory = {}
    for value in (0.1, 0.7, -0.3):
        a = Momentum(0.3, 0.0).finish(flat(value), fake_view(), memory)
        assert torch.equal(a["w"], Sgd(0.3).finish(flat(value), fake_view(), {})["w"])


def test_a_first_return_alone_bypasses_the_momentum_if_asked(fake_view: Make) -> None:
    first = fake_view(cohort=(Job(0, 0, 0, 0, Budget(), 0.0),))
    later = fake_view(cohort=(Job(5, 0, 3, 1, Budget(), 0.0),))
    memory: Memory = {}
    layer = Momentum(1.0, 0.5, skip_first=True)
    assert float(layer.finish(flat(8.0), first, memory)["w"]) == 8.0 and not memory
    assert float(layer.finish(flat(4.0), later, memory)["w"]) == 4.0
    assert float(layer.finish(flat(1.0), later, memory)["w"]) == 3.0


def test_values_out_of_range_are_named() -> None:
    for make, field in ((lambda: Sgd(-0.1), "lr=-0.1"), (lambda: Momentum(momentum=1.0), "momentum=1.0")):
        with pytest.raises(ValueError, match=field):
            make()
