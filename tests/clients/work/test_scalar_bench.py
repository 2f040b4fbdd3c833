"""Fixed points of local training on two quadratic clients, to six digits and against their equations.

f_i(x) = a_i/2 (x - b_i)^2, a = (1, 4), b = (1, -1), equal weights, lr 0.1, start 0. The optimum is -0.6. With
q_i = 1 - (1 - lr a_i)^K_i FedAvg stops at sum q b / sum q, FedNova at sum (q/K) b / sum (q/K).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clients.work.feddyn import FedDyn, FedDynServer
from clients.work.fedprox import FedProx
from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet.protocols import Space, View
from fedhet.testing.quadratic import QuadraticWorld, Rounds
from fedhet.types import Tree, Update
from strategies.rules.mean import Mean
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full

A, B = np.array([1.0, 4.0]), np.array([1.0, -1.0])
WORLD = QuadraticWorld(A, B)
UNIFORM = Mean(uniform=True)
DIGITS = 5e-7


class PerStep:
    """FedNova's unnormalised sum, with the norms the clients report: sum_i (p_i t_eff / a_i) delta_i."""

    needs: frozenset[str] = frozenset()

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        norms = np.array([u.metrics["fednova_norm"] for u in updates])
        return space.combine([u.delta for u in updates], list(norms.mean() / norms / len(updates)))


def settle(work: Any, steps: Any, rounds: int = 100, space: Any = None, rule: Any = UNIFORM, layers: Any = ()) -> float:
    return float(Rounds(work, space or Full(), rule, WORLD, steps, layers).run(rounds)["x"])


def q(steps: Any, lr: float) -> np.ndarray:
    return 1 - (1 - lr * A) ** np.array(steps)


@pytest.mark.parametrize(("steps", "printed"), [(1, -0.6), (5, -0.385005), (20, -0.064705), ((2, 20), -0.680662)])
def test_fedavg_stops_where_its_equation_says(steps: Any, printed: float) -> None:
    found = settle(Sgd(lr=0.1), steps)
    assert found == pytest.approx(printed, abs=DIGITS)
    assert found == pytest.approx(float(q(steps, 0.1) @ B / q(steps, 0.1).sum()), abs=1e-12)


@pytest.mark.parametrize(("steps", "printed"), [(1, -0.6), (5, -0.394939), (20, -0.236251)])
def test_fedprox_stops_nearer_to_the_optimum(steps: int, printed: float) -> None:
    # One client's map x -> y is affine; s is the weight of the pull after K steps of y <- keep y + lr (a b + mu x).
    keep = 1 - 0.1 * (A + 1.0)
    series = (1 - keep**steps) / (1 - keep)
    slope, shift = keep**steps + 0.1 * series, 0.1 * A * B * series
    found = settle(FedProx(lr=0.1, mu=1.0), steps)
    assert found == pytest.approx(printed, abs=DIGITS)
    assert found == pytest.approx(float(shift.mean() / (1 - slope.mean())), abs=1e-12)


@pytest.mark.parametrize(
    ("steps", "printed", "lr", "rounds"),
    [
        (1, -0.6, 0.1, 100),
        (5, -0.385005, 0.1, 40),
        (20, -0.064705, 0.1, 30),
        ((2, 20), 0.310361, 0.1, 60),
        ((2, 20), -0.587927, 0.001, 600),
    ],
)
def test_fednova_stops_where_its_equation_says(steps: Any, printed: float, lr: float, rounds: int) -> None:
    found = settle(Sgd(lr=lr), steps, rounds, rule=PerStep())
    per_step = q(steps, lr) / np.array(steps)
    assert found == pytest.approx(printed, abs=DIGITS)
    assert found == pytest.approx(float(per_step @ B / per_step.sum()), abs=1e-6)


def test_small_steps_leave_fedavg_with_its_inconsistency() -> None:
    assert settle(Sgd(lr=0.001), (2, 20), 400) == pytest.approx(-0.949412, abs=DIGITS)


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("steps", [1, 5, 20, (2, 20)])
def test_scaffold_stops_at_the_optimum(steps: Any, option: int) -> None:
    assert settle(Scaffold(lr=0.1, option=option), steps, space=ControlVariates(2)) == pytest.approx(-0.6, abs=1e-10)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_feddyn_stops_at_the_optimum(steps: int) -> None:
    layers = [FedDynServer(alpha=1.0)]
    assert settle(FedDyn(lr=0.1, alpha=1.0), steps, 150, layers=layers) == pytest.approx(-0.6, abs=1e-10)
