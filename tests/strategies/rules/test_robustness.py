"""(f, kappa)-robustness: |F(x) - mean of S|^2 <= kappa * mean over S of |x_i - mean of S|^2 for every S of n - f rows.

Bounds are those of Allouah et al., arXiv:2302.01772 and arXiv:2302.04787, with a = f / (n - 2f). No rule can do better
than kappa = a.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.rules.chain import Chain
from strategies.rules.flag import Flag
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.rules.nnm import Nnm
from strategies.rules.smea import Smea
from strategies.rules.trimmed_mean import TrimmedMean

Combine = Callable[..., np.ndarray]
N, F = 10, 2
A = F / (N - 2 * F)


def mixed(kappa: float) -> float:
    return 8 * F / (N - F) * (kappa + 1)


BOUNDS: list[tuple[Any, float]] = [
    (TrimmedMean(f=F), 6 * A * (1 + A)),
    (Krum(f=F, neighbours=N - F - 1), 6 * (1 + A)),
    (GeometricMedian(), 4 * (1 + A) ** 2),
    (Median(), 4 * (1 + A) ** 2),
    (Smea(f=F), 4 * F / (N - F) * (1 + A) ** 2),
    (Chain([Nnm(F)], TrimmedMean(f=F)), mixed(6 * A * (1 + A))),
    (Chain([Nnm(F)], GeometricMedian()), mixed(4 * (1 + A) ** 2)),
    (Chain([Nnm(F)], Krum(f=F, neighbours=N - F - 1)), mixed(6 * (1 + A))),
]


def worst(answer: np.ndarray, rows: np.ndarray) -> float:
    """The smallest kappa that holds for every S."""
    ratios = []
    for s in itertools.combinations(range(N), N - F):
        mean = rows[list(s)].mean(0)
        spread = ((rows[list(s)] - mean) ** 2).sum(1).mean()
        ratios.append(((answer - mean) ** 2).sum() / spread)
    return float(max(ratios))


def adversarial(seed: int) -> np.ndarray:
    """Honest rows of unequal spread, and two wrong ones: far, shifted, copies, reversed or in disguise."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 6))
    rows = rng.normal(size=d) * 3 + rng.normal(size=(N, d)) * rng.choice([0.1, 1.0, 5.0], size=d)
    mean, std = rows[F:].mean(0), rows[F:].std(0)
    wrong: list[np.ndarray] = [
        10.0 ** rng.integers(0, 7) * rng.normal(size=(F, d)),
        np.tile(mean - rng.uniform(0, 3) * std, (F, 1)),
        np.tile(rows[F], (F, 1)),
        np.tile(-rng.uniform(0, 10) * mean, (F, 1)),
    ]
    rows[:F] = wrong[int(rng.integers(len(wrong)))]
    return rows


@pytest.mark.parametrize(("rule", "kappa"), BOUNDS)
@settings(max_examples=settings.default.max_examples // 2)
@given(seed=st.integers(0, 1_000_000))
def test_no_two_wrong_updates_break_the_published_bound(combine: Combine, rule: Any, kappa: float, seed: int) -> None:
    rows = adversarial(seed)
    assert worst(combine(rule, rows), rows) <= kappa


def test_the_mean_and_the_published_flag_formula_have_no_bound(combine: Combine) -> None:
    rows = np.random.default_rng(0).normal(size=(N, 30)) + 1.0
    rows[0] = 1e6
    for rule in (Mean(uniform=True), Flag(out="paper")):
        assert worst(combine(rule, rows), rows) > 1e3
    assert worst(combine(Flag(), rows), rows) < 100.0


@pytest.mark.parametrize("rule", [r for r, _ in BOUNDS])
def test_without_attackers_a_rule_stays_near_the_mean(combine: Combine, rule: Any) -> None:
    rows = np.random.default_rng(3).normal(size=(N, 200)) * 0.1 + 1.0
    assert np.linalg.norm(combine(rule, rows) - rows.mean(0)) <= np.linalg.norm(rows - rows.mean(0), axis=1).max()
