"""FedProx between its two limits: plain SGD and no movement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.work.fedprox import FedProx
from clients.work.sgd import Sgd
from fedhet.testing.quadratic import QuadraticWorld, Rounds
from fedhet.types import Budget, Job
from strategies.rules.mean import Mean
from strategies.spaces.full import Full

Make = Callable[..., Any]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1, "clip_norm": 0.5}])
def test_without_pull_it_is_sgd_bit_for_bit(options: dict[str, Any], net_world: Make) -> None:
    ends = [
        Rounds(work, Full(), Mean(), net_world(norm=True), 5).run(3).flat
        for work in (Sgd(lr=0.1, batch=8, **options), FedProx(lr=0.1, batch=8, mu=0.0, **options))
    ]
    assert torch.equal(*ends)


@given(
    a=st.floats(0.1, 3),
    b=st.floats(-2, 2),
    start=st.floats(-2, 2),
    mu=st.floats(0.01, 2),
    momentum=st.sampled_from([0.0, 0.7]),
    steps=st.integers(1, 10),
)
@settings(max_examples=settings.default.max_examples // 2)
def test_path_and_norm_follow_their_recursions(
    a: float, b: float, start: float, mu: float, momentum: float, steps: int
) -> None:
    world = QuadraticWorld([a], [b])
    model = world.model()
    model.params.fill_(start)
    metrics = FedProx(lr=0.1, mu=mu, momentum=momentum).run(
        model, world.shard(0, 0), Job(0, 0, 0, 0, Budget(steps), 0.0), {}
    )
    y, v, weights, heavy, gradients = start, 0.0, np.zeros(steps), np.zeros(steps), []
    for k in range(steps):
        gradients.append(a * (y - b))
        gradient = gradients[-1] + mu * (y - start)
        heavy = momentum * heavy + np.eye(steps)[k] - 0.1 * mu * weights  # of every gradient in the displacement
        v = momentum * v + gradient
        y, weights = y - 0.1 * v, weights + heavy
    assert float(model.params) == pytest.approx(y, abs=1e-12)
    assert start - 0.1 * float(weights @ gradients) == pytest.approx(y, abs=1e-12)
    assert metrics["fednova_norm"] == pytest.approx(weights.sum(), rel=1e-12)
    if not momentum:
        assert metrics["fednova_norm"] == pytest.approx(sum((1 - 0.1 * mu) ** k for k in range(steps)), rel=1e-12)


def test_a_strong_pull_freezes_the_client(a_job: Make) -> None:
    world = QuadraticWorld([1.0], [1.0])
    ends = []
    for mu in (1e2, 1e4, 1e6):
        model = world.model()
        FedProx(lr=1 / mu, mu=mu).run(model, world.shard(0, 0), a_job(20), {})
        ends.append(abs(float(model.params)))
    assert ends == pytest.approx([1e-2, 1e-4, 1e-6], rel=0.02)


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_a_bad_pull_is_refused(mu: float) -> None:
    with pytest.raises(ValueError, match="mu"):
        FedProx(mu=mu)
