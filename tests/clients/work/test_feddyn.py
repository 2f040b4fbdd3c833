"""FedDyn against its equations in numpy, and the invariant of client and server state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clients.work.feddyn import FedDyn, FedDynServer
from fedhet.testing.quadratic import QuadraticWorld, Rounds
from strategies.rules.mean import Mean
from strategies.spaces.full import Full

Make = Callable[..., Any]
A, B = np.array([1.0, 4.0, 2.0, 0.5]), np.array([1.0, -1.0, 0.5, 3.0])
COHORTS = ([0, 1, 2, 3], [1, 3], [0], [0, 2, 3], [1, 2])


def rounds(world: Any, steps: Any, alpha: float = 0.5, **options: Any) -> Rounds:
    work = FedDyn(lr=0.05, alpha=alpha, **options)
    return Rounds(work, Full(), Mean(uniform=True), world, steps, [FedDynServer(alpha=alpha)])


def test_rounds_with_some_clients_follow_the_equations() -> None:
    steps, alpha = [3, 1, 5, 2], 0.5
    loop = rounds(QuadraticWorld(A, B), steps, alpha)
    x, h, g = 0.0, 0.0, np.zeros(4)
    for cohort in COHORTS:
        state = loop.run(1, cohort)
        ends = []
        for i in cohort:
            y = x
            for _ in range(steps[i]):
                y -= 0.05 * (A[i] * (y - B[i]) - g[i] + alpha * (y - x))
            g[i] -= alpha * (y - x)
            ends.append(y)
        h -= alpha / 4 * sum(y - x for y in ends)
        x = float(np.mean(ends)) - h / alpha
        assert float(state["x"]) == pytest.approx(x, abs=1e-12)
        assert float(loop.layer_memory[0]["x"]) == pytest.approx(h, abs=1e-12)
        assert [float(m.get("linear", torch.zeros(1))) for m in loop.memories] == pytest.approx(list(g), abs=1e-12)


def test_the_servers_h_is_the_mean_of_the_clients_g(net_world: Make) -> None:
    loop = rounds(net_world(), [2, 3, 4], batch=8, momentum=0.5, clip_norm=1.0)
    for cohort in ([0, 1, 2], [1], [0, 2], [1, 2]):
        loop.run(1, cohort)
        mean = sum(m.get("linear", torch.zeros_like(loop.model.params)) for m in loop.memories) / 3
        found = torch.cat([loop.layer_memory[0][name].flatten() for name in loop.model.schema])
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-12)
    assert mean.abs().max() > 1e-3


def test_at_rest_every_client_stays_and_the_linear_terms_cancel() -> None:
    world = QuadraticWorld(A, B)
    loop = rounds(world, 10)
    state = loop.run(150)
    assert float(state["x"]) == pytest.approx(float(world.optimum[0]), abs=1e-8)
    assert sum(float(m["linear"]) for m in loop.memories) == pytest.approx(0, abs=1e-8)
    assert [float(u.delta["x"]) for u in loop.updates] == pytest.approx([0] * 4, abs=1e-8)


def test_statistics_of_normalisation_layers_are_only_averaged(net_world: Make) -> None:
    loop = rounds(net_world(norm=True), 2, batch=8)
    loop.run(2)
    before = loop.view.state
    after = loop.run()
    for name in ("1.running_mean", "1.running_var"):
        mean = sum(u.delta[name] for u in loop.updates) / 3
        torch.testing.assert_close(after[name], before[name] + mean, rtol=0, atol=1e-12)
    assert set(loop.layer_memory[0]) == {n for n in loop.model.schema if "running" not in n}
    assert (after["1.running_var"] > 0).all()


def test_the_norm_counts_the_quadratic_term() -> None:
    loop = rounds(QuadraticWorld(A, B), 4, alpha=0.5)
    loop.run()
    assert loop.updates[0].metrics["fednova_norm"] == pytest.approx(
        sum((1 - 0.05 * 0.5) ** k for k in range(4)), rel=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_alpha_is_refused_by_both_halves(alpha: float) -> None:
    for part in (FedDyn, FedDynServer):
        with pytest.raises(ValueError, match="alpha"):
            part(alpha=alpha)
