"""Normalised averaging against its formula and its degenerate cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clients.attacks.sign_flip import SignFlip
from clients.work.adam import Adam
from clients.work.fedprox import FedProx
from clients.work.sgd import Sgd
from fedhet.compose import Method, Misfit
from fedhet.tree import FlatTree, Schema
from fedhet.types import Budget, Job, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.fednova import FedNova, effective_steps
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

Make = Callable[..., Any]
SPACE: Any = Full()


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
    assert combined(FedNova("population", momentum=0.9), ups, view) == combined(Mean("population"), ups, view)


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


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_steps_are_the_displacement_of_constant_unit_gradients(momentum: float) -> None:
    for steps in (1, 2, 5, 40):
        velocity = position = 0.0
        for _ in range(steps):
            velocity = momentum * velocity + 1.0
            position += velocity
        assert effective_steps(np.array([float(steps)]), momentum)[0] == pytest.approx(position, rel=1e-12)


@pytest.mark.parametrize(
    "work",
    [
        Sgd(momentum=0.9),
        Sgd(momentum=0.5, nesterov=True),
        FedProx(lr=0.1, mu=2.0),
        FedProx(lr=0.1, mu=1.0, momentum=0.6),
    ],
    ids=repr,
)
def test_unequal_steps_of_any_work_have_equal_influence_on_a_constant_gradient(work: Any, fake_view: Make) -> None:
    """Clients whose gradient is constant: their steps' number, momentum and pull must not bend the direction."""
    paths = {}
    for steps in (2, 9, 40):  # an independent float64 loop of the work's update
        start = w = velocity = 0.0
        for _ in range(steps):
            gradient = 1.0 + getattr(work, "mu", 0.0) * (w - start)
            velocity = work.momentum * velocity + gradient
            w -= work.lr * (gradient + work.momentum * velocity if work.nesterov else velocity)
        paths[steps] = w / -work.lr
    view = fake_view(examples={0: 1, 1: 1, 2: 1}, fednova_norm=work.fednova_norm)
    for steps, path in paths.items():
        assert work.fednova_norm(Job(0, 0, 0, 0, Budget(steps), 0.0)) == pytest.approx(path, rel=1e-12)
    slopes = {0: 3.0, 1: -1.0, 2: 0.5}
    ups = [update(c, slopes[c] * paths[steps], 1, steps) for c, steps in zip(slopes, paths, strict=True)]
    mean_path = sum(paths.values()) / 3
    assert combined(FedNova(), ups, view) == pytest.approx(mean_path * sum(slopes.values()) / 3, rel=1e-5)


def test_what_a_client_reports_of_its_steps_counts_for_nothing(fake_view: Make) -> None:
    view = fake_view(examples={0: 1, 1: 1})
    honest = [update(0, 1.0, 1, 10), update(1, 2.0, 1, 40)]
    lying = [honest[0], replace(honest[1], metrics={"a_norm": 1e-6, "steps": 1e-6})]
    assert combined(FedNova(), lying, view) == combined(FedNova(), honest, view)


def test_a_work_that_cannot_say_what_its_steps_weigh_is_a_misfit() -> None:
    parts = {"schedule": Sync(), "space": Full(), "budget": Fixed(steps=1)}
    with pytest.raises(Misfit, match=r"FedNova needs \['norm'\]"):
        Method(rule=FedNova(), work=Adam(), **parts)
    Method(rule=FedNova(momentum=0.9), work=Adam(), **parts)
    Method(rule=FedNova(), work=SignFlip(clients=[0])(Sgd(momentum=0.9)), **parts)
    with pytest.raises(Misfit, match=r"FedNova needs \['norm'\]"):
        Method(rule=FedNova(), work=SignFlip(clients=[0])(Adam()), **parts)


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="momentum=1"):
        FedNova(momentum=1.0)
    with pytest.raises(ValueError, match="over='all'"):
        FedNova("all")
