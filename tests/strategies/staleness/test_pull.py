"""The mixing form of FedAsync against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedhet.numerics.tree import FlatTree, Schema, add, scale
from fedhet.types import Budget, Job, Update
from strategies.optimizers.sgd import Sgd
from strategies.staleness.pull import Pull

Make = Callable[..., Any]


def flat(*values: float) -> FlatTree:
    leaf = torch.tensor(values)
    return FlatTree(Schema.of({"w": leaf}), leaf)


def update(delta: FlatTree, version: int) -> Update:
    return Update(Job(0, 0, version, 0, Budget(), 0.0), delta, 1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.6, 1.0])
def test_the_new_model_is_the_mixture_of_server_and_client_model(alpha: float, fake_view: Make) -> None:
    base, now, delta = flat(1.0, -2.0, 0.5), flat(3.0, 4.0, -8.0), flat(0.5, 0.25, 2.0)
    view = fake_view(version=5, state=now, bases={2: base, 5: now})
    pulled = Pull().arrive(update(delta, 2), view, {})
    model = add(now, Sgd(alpha).finish(scale(pulled.delta, pulled.scale), view, {}))
    want = (1 - alpha) * now["w"] + alpha * (base["w"] + delta["w"])
    torch.testing.assert_close(model["w"], want)


def test_alpha_zero_leaves_the_model_unchanged_bitwise(fake_view: Make) -> None:
    base, now, delta = flat(0.1), flat(0.7), flat(0.3)
    view = fake_view(version=1, state=now, bases={0: base})
    step = Sgd(0.0).finish(Pull().arrive(update(delta, 0), view, {}).delta, view, {})
    assert torch.equal(add(now, step)["w"], now["w"])


def test_a_fresh_update_is_left_alone(fake_view: Make) -> None:
    fresh = update(flat(0.3), 4)
    assert Pull().arrive(fresh, fake_view(version=4), {}) is fresh
