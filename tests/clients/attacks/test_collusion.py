"""Collusion attacks: the vector that all attackers send, computed from the honest updates."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.attacks.alie import Alie, quantile
from clients.attacks.collusion import AbstractCollusion, strongest
from clients.attacks.ipm import Ipm
from clients.attacks.mimic import Mimic
from clients.attacks.min_max import MinMax

WHO: dict[str, Any] = {"clients": [0]}


def honest_of(seed: int = 0, h: int = 8, d: int = 12) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=d) + rng.normal(size=(h, d)))


def unused(vector: Tensor) -> Tensor:
    raise AssertionError("a fixed attack does not ask the defence")


def test_a_little_is_enough_stays_within_the_published_quantile() -> None:
    rows = honest_of(h=12)
    mean, std = rows.numpy().mean(0), rows.numpy().std(0, ddof=1)
    z = NormalDist().inv_cdf((12 - (15 // 2 + 1 - 3)) / 12)
    assert Alie(**WHO).vector(rows, 3, unused).numpy() == pytest.approx(mean - z * std)
    assert Alie(**WHO, z=1.5).vector(rows, 3, unused).numpy() == pytest.approx(mean - 1.5 * std)
    assert quantile(1, 1) == 0.0 and quantile(8, 20) == NormalDist().inv_cdf(7 / 8)


def test_one_honest_update_has_no_spread() -> None:
    rows = honest_of(h=1)
    for attack in (Alie(**WHO, z=2.0), MinMax(**WHO), Mimic(**WHO)):
        assert attack.vector(rows, 1, unused).numpy() == pytest.approx(rows[0].numpy())


def test_inner_product_manipulation_is_the_negative_mean() -> None:
    rows = honest_of()
    assert Ipm(**WHO, tau=0.1).vector(rows, 2, unused).numpy() == pytest.approx(-0.1 * rows.numpy().mean(0))


def test_mimics_send_an_honest_row() -> None:
    rows = honest_of()
    rows[5] += 30.0
    assert torch.equal(Mimic(**WHO, row=2).vector(rows, 2, unused), rows[2])
    assert torch.equal(Mimic(**WHO, row=10).vector(rows, 2, unused), rows[2])
    assert torch.equal(Mimic(**WHO).vector(rows, 2, unused), rows[5])


@pytest.mark.parametrize("direction", ["mean", "std", "sign"])
@settings(max_examples=settings.default.max_examples // 5)
@given(seed=st.integers(0, 10_000))
def test_min_max_goes_exactly_as_far_as_it_may(direction: str, seed: int) -> None:
    rows = honest_of(seed)
    apart = torch.cdist(rows, rows)
    for bound in ("max", "sum"):
        sent = MinMax(**WHO, bound=bound, direction=direction).vector(rows, 2, unused)
        away = torch.linalg.vector_norm(sent - rows, dim=1)
        if bound == "max":
            got, allowed = float(away.max()), float(apart.max())
        else:
            got, allowed = float(away.square().sum()), float(apart.square().sum(1).max())
        assert got == pytest.approx(allowed, rel=1e-9)


@pytest.mark.parametrize("attack", [Alie(**WHO, optimise=True), Ipm(**WHO, optimise=True)])
def test_an_optimised_attack_does_more_damage_than_fixed_ones(attack: AbstractCollusion) -> None:
    rows = honest_of()
    mean = rows.mean(0)

    def median(vector: Tensor) -> Tensor:
        return torch.quantile(torch.cat([rows, vector.expand(3, -1)]), 0.5, dim=0)

    def harm(vector: Tensor) -> float:
        return float((median(vector) - mean).norm())

    best = harm(attack.vector(rows, 3, median))
    fixed = [Alie(**WHO, z=z) for z in (0.1, 0.5, 1.0, 1.5)] if isinstance(attack, Alie) else []
    fixed += [Ipm(**WHO, tau=t) for t in (0.1, 0.5, 1.0)] if isinstance(attack, Ipm) else []  # type: ignore[misc]
    assert all(best >= harm(a.vector(rows, 3, median)) - 1e-9 for a in fixed) and best > 0


@settings(max_examples=settings.default.max_examples // 3)
@given(peak=st.floats(0.0, 500.0))
def test_the_search_finds_a_single_peak(peak: float) -> None:
    assert strongest(lambda t: -abs(t - peak), rounds=60) == pytest.approx(peak, abs=0.05 * max(1.0, peak))
    assert strongest(lambda t: -t) == 0.0
