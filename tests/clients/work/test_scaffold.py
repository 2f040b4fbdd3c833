"""SCAFFOLD against its equations in numpy, and invariants of its control variates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet.testing.quadratic import QuadraticWorld, Rounds
from strategies.rules.mean import Mean
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full

Make = Callable[..., Any]
A, B, DECAY = np.array([1.0, 4.0, 2.0, 0.5]), np.array([1.0, -1.0, 0.5, 3.0]), 0.1
COHORTS = ([0, 1, 2, 3], [1, 3], [0], [0, 2, 3], [1, 2])


def reference(steps: list[int], option: int, lr: float, decay: float) -> tuple[float, float, np.ndarray]:
    x, c, own = 0.0, 0.0, np.zeros(4)
    for cohort in COHORTS:
        moves, changes = [], []
        for i in cohort:
            y = x
            for _ in range(steps[i]):
                y -= lr * (A[i] * (y - B[i]) + decay * y - own[i] + c)
            full = A[i] * (x - B[i]) + decay * x
            fresh = full if option == 1 else own[i] - c + (x - y) / (steps[i] * lr)
            moves.append(y - x)
            changes.append(fresh - own[i])
            own[i] = fresh
        x, c = x + float(np.mean(moves)), c + sum(changes) / 4
    return x, c, own


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_rounds_with_some_clients_follow_the_equations(option: int, decay: float) -> None:
    steps = [3, 1, 5, 2]
    work = Scaffold(lr=0.05, option=option, weight_decay=decay)
    loop = Rounds(work, ControlVariates(4), Mean(uniform=True), QuadraticWorld(A, B), steps)
    for cohort in COHORTS:
        loop.run(1, cohort)
    x, c, own = reference(steps, option, 0.05, decay)
    assert float(loop.view.state["x"]) == pytest.approx(x, abs=1e-12)
    assert float(loop.view.state["control.x"]) == pytest.approx(c, abs=1e-12)
    assert [float(m["control"]) for m in loop.memories] == pytest.approx(list(own), abs=1e-12)


@pytest.mark.parametrize("option", [1, 2])
def test_the_servers_variate_is_the_mean_of_the_clients_whatever_their_weights(option: int, net_world: Make) -> None:
    """Unequal weights in the rule do not reach the control part."""
    world = net_world(norm=True)
    loop = Rounds(Scaffold(lr=0.1, batch=8, option=option), ControlVariates(3), Lopsided(), world, [2, 3, 4])
    for cohort in ([0, 1, 2], [1], [0, 2], [1, 2]):
        state = loop.run(1, cohort)
        mean = sum(m.get("control", torch.zeros_like(loop.model.params)) for m in loop.memories) / 3
        found = torch.cat([leaf.flatten() for name, leaf in state.items() if name.startswith("control.")])
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-12)
    assert mean.abs().max() > 1e-3


class Lopsided:
    """Half of the first update and a tenth of the others."""

    needs: frozenset[str] = frozenset()

    def __call__(self, updates: Any, space: Any, view: Any) -> Any:
        return space.combine([u.delta for u in updates], [0.5] + [0.1] * (len(updates) - 1))


def test_equal_clients_have_the_servers_variate_and_train_like_fedavg() -> None:
    world = QuadraticWorld([2.0] * 3, [1.5] * 3)
    control = Rounds(Scaffold(lr=0.1), ControlVariates(3), Mean(uniform=True), world, 4)
    plain = Rounds(Sgd(lr=0.1), Full(), Mean(uniform=True), world, 4)
    for _ in range(4):
        state, other = control.run(), plain.run()
        for memory in control.memories:
            assert float(memory["control"]) == pytest.approx(float(state["control.x"]), abs=1e-14)
        assert float(state["x"]) == pytest.approx(float(other["x"]), abs=1e-14)


def test_option_two_is_the_mean_gradient_along_the_path() -> None:
    world = QuadraticWorld(A, B)
    loop = Rounds(Scaffold(lr=0.05), ControlVariates(4), Mean(uniform=True), world, 6)
    state = loop.run(3)
    x, c = float(state["x"]), float(state["control.x"])
    own = [float(m["control"]) for m in loop.memories]
    loop.run()
    for i in range(4):
        y, gradients = x, []
        for _ in range(6):
            gradients.append(A[i] * (y - B[i]))
            y -= 0.05 * (gradients[-1] - own[i] + c)
        assert float(loop.memories[i]["control"]) == pytest.approx(float(np.mean(gradients)), abs=1e-12)


def test_option_one_is_the_gradient_of_all_samples_and_leaves_statistics_to_training(net_world: Make) -> None:
    world = net_world(norm=True)
    works = Scaffold(lr=0.1, batch=24, option=1), Scaffold(lr=0.1, batch=24, option=2), Sgd(lr=0.1, batch=24)
    loops = [
        Rounds(work, space, Mean(uniform=True), world, 1)
        for work, space in zip(works, [ControlVariates(3), ControlVariates(3), Full()], strict=True)
    ]
    states = [loop.run() for loop in loops]
    for name, leaf in states[2].items():  # c and c_i are zero in the first round
        torch.testing.assert_close(states[0][name], leaf, rtol=0, atol=1e-14)
    for first, second in zip(loops[0].memories, loops[1].memories, strict=True):
        torch.testing.assert_close(first["control"], second["control"], rtol=0, atol=1e-12)


def test_what_is_no_plain_step_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        Scaffold(momentum=0.9)
    with pytest.raises(ValueError, match="clip_norm"):
        Scaffold(clip_norm=1.0)
    with pytest.raises(ValueError, match="option"):
        Scaffold(option=3)


def test_step_size_of_the_variate_is_that_of_the_job() -> None:
    world = QuadraticWorld([2.0], [1.0])
    loop = Rounds(Scaffold(lr=0.1, lr_decay=0.5), ControlVariates(1), Mean(), world, 1)
    loop.run()
    x = float(loop.view.state["x"])
    loop.run()
    assert float(loop.memories[0]["control"]) == pytest.approx(2.0 * (x - 1.0), abs=1e-12)
