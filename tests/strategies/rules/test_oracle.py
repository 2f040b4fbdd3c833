"""The same results as byzfl, where it is installed and has the same definition of a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clients.attacks.alie import Alie
from clients.attacks.ipm import Ipm
from strategies.rules.arc import Arc
from strategies.rules.centred_clipping import CentredClipping
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.mda import MinimumDiameter
from strategies.rules.meamed import Meamed
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.rules.monna import Monna
from strategies.rules.nnm import Nnm
from strategies.rules.trimmed_mean import TrimmedMean

byzfl = pytest.importorskip("byzfl")

Combine = Callable[..., np.ndarray]
N, F = 11, 2


def rows_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=30) + 0.5 * rng.normal(size=(N, 30))
    rows[[3, 7]] += 9.0 * rng.normal(size=(2, 30))
    return rows


def pairs() -> list[tuple[str, Any, Callable[[np.ndarray], np.ndarray]]]:
    """Name, our rule, theirs. Theirs may write to what it is given."""
    return [
        ("average", Mean(uniform=True), byzfl.Average()),
        ("median", Median(), byzfl.Median()),
        ("trimmed mean", TrimmedMean(f=F), byzfl.TrMean(F)),
        ("meamed", Meamed(f=F), byzfl.Meamed(F)),
        ("krum", Krum(f=F, neighbours=N - F - 1), byzfl.Krum(F)),
        ("multi-krum", MultiKrum(f=F, neighbours=N - F - 1, keep=N - F), byzfl.MultiKrum(F)),
        ("mda", MinimumDiameter(f=F), byzfl.MDA(F)),
        ("monna", Monna(f=F), byzfl.MoNNA(F)),
        ("geometric median", GeometricMedian(iterations=3000, tolerance=0.0), byzfl.GeometricMedian(1e-9, 3000)),
        ("centred clipping", CentredClipping(radius=2.0, iterations=3), lambda x: _clipping(x)),
        ("nnm", Chain([Nnm(F)], Mean(uniform=True)), lambda x: byzfl.NNM(F)(x).mean(0)),
        ("nnm, median", Chain([Nnm(F)], Median()), lambda x: np.median(byzfl.NNM(F)(x), axis=0)),
        ("arc", Chain([Arc(F)], Mean(uniform=True)), lambda x: byzfl.ARC(F)(x).mean(0)),
        ("clipping", Chain([Clipping(3.0)], Mean(uniform=True)), lambda x: byzfl.Clipping(3.0)(x).mean(0)),
    ]


def _clipping(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = byzfl.CenteredClipping(L=3, tau=2.0)(x)
    return result


@pytest.mark.parametrize("at", range(14))
@pytest.mark.parametrize("seed", range(4))
def test_a_rule_agrees_with_byzfl(combine: Combine, at: int, seed: int) -> None:
    name, ours, theirs = pairs()[at]
    rows = rows_of(seed)
    loose = 1e-6 if name == "geometric median" else 1e-9
    assert combine(ours, rows) == pytest.approx(theirs(rows.copy()), rel=loose, abs=loose), name


def test_attacks_agree_with_byzfl() -> None:
    rows = rows_of(0)
    who: dict[str, Any] = {"clients": [0]}
    honest = torch.from_numpy(rows)
    ipm = Ipm(**who, tau=2.0).vector(honest, F, lambda v: v).numpy()
    assert ipm == pytest.approx(byzfl.InnerProductManipulation(tau=2.0)(rows))
    alie = Alie(**who, z=-1.5).vector(honest, F, lambda v: v).numpy()  # theirs adds the deviations
    assert alie == pytest.approx(byzfl.ALittleIsEnough(tau=1.5)(rows))
