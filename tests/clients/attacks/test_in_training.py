"""Attacks and rules together, in rounds of quadratic clients whose optimum is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clients.attacks.alie import Alie
from clients.attacks.base import AbstractAttack
from clients.attacks.constant import Constant
from clients.attacks.mimic import Mimic
from clients.attacks.min_max import MinMax
from clients.attacks.scaling import Scaling
from clients.attacks.sign_flip import SignFlip
from clients.work.sgd import Sgd
from fedhet.testing.quadratic import QuadraticWorld, Rounds
from strategies.rules.arc import Arc
from strategies.rules.chain import Chain
from strategies.rules.colluding import Colluding
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.mean import Mean
from strategies.rules.nnm import Nnm
from strategies.rules.trimmed_mean import TrimmedMean
from strategies.spaces.full import Full

EVIL = (2, 5)
WHO: dict[str, Any] = {"clients": EVIL}
SPREAD = 0.3
ROBUST: list[Any] = [TrimmedMean(f=2), GeometricMedian(), Chain([Arc(2), Nnm(2)], GeometricMedian())]


def world_of() -> QuadraticWorld:
    rng = np.random.default_rng(0)
    return QuadraticWorld([1.0] * 10, 5.0 + SPREAD * rng.normal(size=(10, 6)))


def gap(rule: Any, work: Any, rounds: int = 12) -> float:
    """After 24 local steps: distance of the last model to the honest clients' mean optimum."""
    world = world_of()
    state = Rounds(work, Full(), rule, world, steps=2).run(rounds)
    honest = np.delete(world._b, EVIL, axis=0).mean(0)
    return float(np.linalg.norm(np.concatenate([leaf.numpy().ravel() for leaf in state.values()]) - honest))


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize(
    "attack", [SignFlip(**WHO, strength=10.0), Scaling(**WHO, factor=1e6), Constant(**WHO, value=1e9)]
)
def test_loud_attackers_wreck_the_mean_and_not_a_robust_rule(rule: Any, attack: AbstractAttack) -> None:
    work = Sgd(lr=0.2, batch=1)
    assert gap(rule, attack(work)) < 3 * SPREAD
    assert not gap(Mean(uniform=True), attack(work)) < 3.0  # far away, or no number at all


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("attack", [Alie(**WHO, optimise=True), Alie(**WHO, z=1.5), Mimic(**WHO), MinMax(**WHO)])
def test_attackers_with_full_sight_stay_within_the_honest_spread(rule: Any, attack: AbstractAttack) -> None:
    assert gap(Colluding(rule, attack), Sgd(lr=0.2, batch=1)) < 6 * SPREAD


@pytest.mark.parametrize("rule", [Mean(uniform=True), *ROBUST])
def test_without_attackers_every_rule_arrives(rule: Any) -> None:
    assert gap(rule, Sgd(lr=0.2, batch=1)) < 2 * SPREAD
