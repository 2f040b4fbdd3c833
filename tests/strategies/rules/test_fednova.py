"""Normalised averaging against its formula and its degenerate cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clients.attacks.sign_flip import SignFlip
from clients.work.adam import Adam
from clients.work.fedprox import FedProx
from clients.work.sgd import Sgd
from fedhet.engine.method import Method, Misfit
from fedhet.numerics.tree import FlatTree, Schema, scaled, weighted_sum
from fedhet.testing.quadratic import QuadraticWorld, Rounds
from fedhet.types import Budget, Job, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.bucketing import Bucketing
from strategies.rules.chain import Chain
from strategies.rules.fednova import FedNova
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

Make = Callable[..., Any]
SPACE: Any = SimpleNamespace(combine=lambda deltas, c, s: weighted_sum(deltas, scaled(c, s)))


def update(client: int, value: float, weight: float, steps: int, scale: float = 1.0) -> Update:
    leaf = torch.tensor([value])
    return Update(Job(client, client, 0, 0, Budget(steps), 0.0), FlatTree(Schema.of({"w": leaf}), leaf), weight, scale)


def combined(rule: Any, updates: list[Update], view: Any) -> float:
    return float(rule(updates, SPACE, view)["w"])


def test_equal_steps_give_the_same_bits_as_the_mean(fake_view: Make) -> None:
    view = fake_view(examples={0: 3, 1: 7, 2: 11})
    ups = [update(c, 0.1 + c, w, 7) for c, w in ((0, 3), (1, 7), (2, 11))]
    for over in ("cohort", "population"):
        assert combined(FedNova(over), ups, view) == combined(Mean(over), ups, view)


def test_one_update_alone_is_not_normalised(fake_view: Make) -> None:
    view = fake_view(examples={0: 3, 1: 7})
    ups = [update(0, 0.3, 3, 50)]
    assert combined(FedNova("population"), ups, view) == combined(Mean("population"), ups, view)


def test_displacements_proportional_to_steps_count_by_samples_alone(fake_view: Make) -> None:
    view = fake_view(examples={0: 1, 1: 3})
    got = combined(FedNova(), [update(0, 2.0, 1, 10), update(1, -40.0, 3, 40)], view)
    mean_steps = (1 * 10 + 3 * 40) / 4
    assert got == pytest.approx(mean_steps * (1 * 0.2 - 3 * 1.0) / 4)


def test_over_the_population_only_the_cohort_sets_the_number_of_steps(fake_view: Make) -> None:
    view = fake_view(examples={0: 10, 1: 30, 2: 60})
    ups = [update(0, 1.0, 10, 20, 0.5), update(1, 1.0, 30, 100)]
    mean_steps = (0.1 * 20 + 0.3 * 100) / 0.4
    want = mean_steps * (0.1 * 0.5 * 1.0 / 20 + 0.3 * 1.0 / 100)
    assert combined(FedNova("population"), ups, view) == pytest.approx(want)


def reference(a: np.ndarray, b: np.ndarray, steps: list[int], work: Any, rounds: int) -> float:
    """FedNova on f_i = a_i/2 (x - b_i)^2 with equal weights, written out: every gradient's weight is followed by linear
    algebra. y_k = sum_j w_kj (-lr g_j) with the weights of heavy ball, and -mu (y_k - x) inside the gradient."""
    x = 0.0
    for _ in range(rounds):
        moved, norms = [], []
        for ai, bi, k in zip(a, b, steps, strict=True):
            y, v, pure, pv = x, 0.0, 0.0, 0.0
            for _ in range(k):
                v = work.momentum * v + ai * (y - bi) + work.pull * (y - x)
                pv = work.momentum * pv + 1.0 - work.lr * work.pull * pure
                y, pure = y - work.lr * v, pure + pv
            moved.append(y - x)
            norms.append(pure)
        x += sum(norms) / len(norms) * sum(m / n for m, n in zip(moved, norms, strict=True)) / len(norms)
    return x


WORKS = [Sgd(lr=0.01), Sgd(lr=0.01, momentum=0.9), FedProx(lr=0.01, mu=2.0), FedProx(lr=0.01, mu=1.0, momentum=0.5)]


@pytest.mark.parametrize("work", WORKS, ids=["plain", "momentum", "proximal", "both"])
def test_the_limit_point_is_that_of_the_equations_with_momentum_and_a_proximal_term(work: Any) -> None:
    a, b, steps = np.array([1.0, 4.0]), np.array([1.0, -1.0]), [2, 20]
    got = float(Rounds(work, Full(), FedNova(uniform=True), QuadraticWorld(a, b), steps).run(120)["x"])
    assert got == pytest.approx(reference(a, b, steps, work, 120), abs=1e-9)


def test_momentum_is_no_reason_to_stop_far_from_the_optimum() -> None:
    """Counting steps where momentum lets them count more in long jobs leaves five times the distance."""
    a, b, steps = np.array([1.0, 4.0]), np.array([1.0, -1.0]), [2, 20]
    world, work = QuadraticWorld(a, b), Sgd(lr=0.0005, momentum=0.9)
    gaps = []
    for count in (work.fednova_norm, lambda job: float(job.budget.steps)):
        rounds = Rounds(work, Full(), FedNova(uniform=True), world, steps)
        rounds.view.fednova_norm = count
        gaps.append(abs(float(rounds.run(600)["x"]) - float(world.optimum[0])))
    assert gaps[0] < 0.025 and gaps[1] > 5 * gaps[0]


@pytest.mark.parametrize("claim", [1e-9, -3.0, 1e30])
def test_what_a_client_reports_of_its_norm_moves_nothing(fake_view: Make, claim: float) -> None:
    view = fake_view(examples={0: 1, 1: 1})
    honest = [update(0, 2.0, 1, 10), update(1, -40.0, 1, 40)]
    liar = [honest[0], replace(honest[1], metrics={"fednova_norm": claim, "steps": claim})]
    assert combined(FedNova(), liar, view) == combined(FedNova(), honest, view)


def test_work_that_cannot_say_what_its_steps_add_up_to_is_a_misfit() -> None:
    def method(work: Any) -> Method:
        return Method(Sync(), Full(), FedNova(), work, Fixed(steps=1))

    with pytest.raises(Misfit, match=r"FedNova needs \['fednova_norm'\].*work Adam.*use work=sgd"):
        method(Adam())
    with pytest.raises(Misfit, match="fednova_norm"):
        method(SignFlip(clients=(0,))(Adam()))
    assert method(SignFlip(clients=(0,))(Sgd(momentum=0.9))).rule == FedNova()


def test_a_norm_that_is_not_positive_and_merged_updates_are_refused(fake_view: Make) -> None:
    view = fake_view(examples={0: 1, 1: 1})
    view.fednova_norm = FedProx(lr=1.0, mu=2.0).fednova_norm
    with pytest.raises(ValueError, match="job 1 of client 1: 2 local steps have norm 0"):
        combined(FedNova(), [update(0, 1.0, 1, 1), update(1, 1.0, 1, 2)], view)
    with pytest.raises(ValueError, match="no mixing before it may merge them"):
        combined(Chain([Bucketing(2)], FedNova()), [update(c, 1.0, 1, 1) for c in range(2)], view)


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="over='all'"):
        FedNova("all")
