"""Rules on inner products: each against its definition on dense float64 rows, and their symmetries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.rules.caf import Caf
from strategies.rules.centred_clipping import CentredClipping
from strategies.rules.flag import Flag
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.mda import MinimumDiameter
from strategies.rules.monna import Monna
from strategies.rules.smea import Smea
from strategies.rules.unit_mean import UnitMean

Combine = Callable[..., np.ndarray]
SEEDS = st.integers(0, 100_000)
few = settings(max_examples=settings.default.max_examples // 5)


def krum_scores(x: np.ndarray, m: int) -> np.ndarray:
    apart = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    return np.array([np.sort(np.delete(row, i))[:m].sum() for i, row in enumerate(apart)])


def krum(x: np.ndarray, f: int) -> np.ndarray:
    result: np.ndarray = x[krum_scores(x, len(x) - f - 2).argmin()]
    return result


def multi_krum(x: np.ndarray, f: int) -> np.ndarray:
    best = np.argsort(krum_scores(x, len(x) - f - 2), kind="stable")[: len(x) - f - 2]
    result: np.ndarray = x[best].mean(0)
    return result


def mda(x: np.ndarray, f: int) -> np.ndarray:
    def diameter(s: tuple[int, ...]) -> tuple[float, float]:
        apart = [float(((x[i] - x[j]) ** 2).sum()) for i in s for j in s]
        return max(apart), sum(apart)

    result: np.ndarray = x[list(min(itertools.combinations(range(len(x)), len(x) - f), key=diameter))].mean(0)
    return result


def smea(x: np.ndarray, f: int) -> np.ndarray:
    def spread(s: tuple[int, ...]) -> float:
        return float(np.linalg.norm(x[list(s)] - x[list(s)].mean(0), 2))

    result: np.ndarray = x[list(min(itertools.combinations(range(len(x)), len(x) - f), key=spread))].mean(0)
    return result


def monna(x: np.ndarray, f: int) -> np.ndarray:
    result: np.ndarray = x[np.argsort(np.linalg.norm(x - x[0], axis=1), kind="stable")[: len(x) - f]].mean(0)
    return result


def weiszfeld(x: np.ndarray, f: int) -> np.ndarray:
    z, nu = x.mean(0), 1e-6 * np.median(np.linalg.norm(x, axis=1))
    for _ in range(500):
        b = 1 / np.maximum(nu, np.linalg.norm(x - z, axis=1))
        z = (b[:, None] * x).sum(0) / b.sum()
    result: np.ndarray = z
    return result


def clipped(x: np.ndarray, f: int) -> np.ndarray:
    v = np.zeros(x.shape[1])
    for _ in range(3):
        r = np.linalg.norm(x - v, axis=1)
        v = v + ((x - v) * np.minimum(1, np.median(r) / r)[:, None]).mean(0)
    return v


def caf(x: np.ndarray, f: int) -> np.ndarray:
    c, best, answer = np.ones(len(x)), np.inf, x.mean(0)
    while c.sum() > len(x) - 2 * f:
        mean = c @ x / c.sum()
        values, vectors = np.linalg.eigh(((x - mean).T * c) @ (x - mean) / c.sum())
        extents = ((x - mean) @ vectors[:, -1]) ** 2
        if values[-1] < best:
            best, answer = values[-1], mean
        c = np.where(c > 1e-12, c * (1 - extents / extents[c > 1e-12].max()), 0)
    result: np.ndarray = answer
    return result


CASES: list[tuple[Any, Callable[[np.ndarray, int], np.ndarray]]] = [
    (Krum(f=2), krum),
    (MultiKrum(f=2), multi_krum),
    (MinimumDiameter(f=2), mda),
    (Smea(f=2), smea),
    (Monna(f=2), monna),
    (GeometricMedian(iterations=500, tolerance=1e-12), weiszfeld),
    (CentredClipping(), clipped),
    (Caf(f=2), caf),
]
NAMES = [type(rule).__name__ for rule, _ in CASES]
EVERY = [rule for rule, _ in CASES] + [Flag(iterations=1), UnitMean(), CentredClipping(radius=1.5, start="medoid")]
IDS = [*NAMES, "Flag", "UnitMean", "medoid clipping"]


def rows_of(seed: int, n: int = 9, d: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))
    rows[1:3] += rng.choice([0.0, 3.0]) * rng.normal(size=(2, d))
    return rows


@pytest.mark.parametrize(("rule", "reference"), CASES, ids=NAMES)
@few
@given(seed=SEEDS)
def test_a_rule_is_its_definition(combine: Combine, rule: Any, reference: Any, seed: int) -> None:
    rows = rows_of(seed)
    assert combine(rule, rows) == pytest.approx(reference(rows, 2), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("rule", EVERY, ids=IDS)
@few
@given(seed=SEEDS)
def test_the_order_of_the_updates_does_not_matter(combine: Combine, rule: Any, seed: int) -> None:
    rows = rows_of(seed)
    order = np.random.default_rng(seed).permutation(9)
    if isinstance(rule, Monna):
        order = np.array([0, *(order[order != 0])])  # the trusted client stays who it is
    assert combine(rule, rows[order]) == pytest.approx(combine(rule, rows), abs=1e-7)


@pytest.mark.parametrize("rule", EVERY, ids=IDS)
@few
@given(seed=SEEDS, factor=st.floats(1e-6, 1e6))
def test_longer_updates_give_a_longer_answer(combine: Combine, rule: Any, seed: int, factor: float) -> None:
    if isinstance(rule, CentredClipping) and rule.radius is not None:
        return  # an absolute radius does not scale
    rows = rows_of(seed)
    assert combine(rule, factor * rows) == pytest.approx(factor * combine(rule, rows), rel=1e-6, abs=1e-7 * factor)


@pytest.mark.parametrize("rule", EVERY, ids=IDS)
@few
@given(seed=SEEDS)
def test_turned_updates_give_a_turned_answer(combine: Combine, rule: Any, seed: int) -> None:
    rows = rows_of(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))
    assert combine(rule, rows @ turn) == pytest.approx(combine(rule, rows) @ turn, abs=1e-7)


@pytest.mark.parametrize("rule", [r for r, _ in CASES if not isinstance(r, CentredClipping)])
@few
@given(seed=SEEDS, shift=st.floats(-50, 50))
def test_moved_updates_give_a_moved_answer(combine: Combine, rule: Any, seed: int, shift: float) -> None:
    rows = rows_of(seed)
    assert combine(rule, rows + shift) == pytest.approx(combine(rule, rows) + shift, abs=1e-4)


@pytest.mark.parametrize("rule", [r for r in EVERY if not (isinstance(r, CentredClipping) and r.radius)])
def test_equal_updates_are_returned(combine: Combine, rule: Any) -> None:
    g = np.random.default_rng(5).normal(size=12)
    assert combine(rule, np.tile(g, (9, 1))) == pytest.approx(g, rel=1e-7)
    assert not combine(rule, np.zeros((9, 12))).any()


@pytest.mark.parametrize("rule", EVERY, ids=IDS)
def test_a_scale_is_part_of_the_update_and_a_weight_is_not_believed(combine: Combine, rule: Any) -> None:
    rows, scales = rows_of(4), np.linspace(0.3, 1.0, 9)
    plain = combine(rule, rows * scales[:, None])
    assert combine(rule, rows, scales=scales) == pytest.approx(plain, abs=1e-9)
    assert combine(rule, rows, weights=np.arange(1, 10) ** 5) == pytest.approx(combine(rule, rows), abs=0)


@pytest.mark.parametrize("rule", [Krum(f=3), MultiKrum(f=3), MinimumDiameter(f=3), Smea(f=3), Caf(f=3)])
def test_too_few_updates_for_f_are_refused(combine: Combine, rule: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{type(rule).__name__} needs . updates or more to tolerate f=3 Byzantine ones"
    ):
        combine(rule, rows_of(0, n=6))


@pytest.mark.parametrize("kind", [Krum, MultiKrum, MinimumDiameter, Smea, Caf, Monna])
def test_f_is_a_count_or_a_share_below_one_half(combine: Combine, kind: Any) -> None:
    rows = rows_of(1, n=10)
    assert (combine(kind(f=0.2), rows) == combine(kind(f=2), rows)).all()
    for bad in (-1, 0.5, -0.1, 2.0, True, "1"):
        with pytest.raises(ValueError, match="f="):
            kind(f=bad)


@pytest.mark.parametrize("kind", [MultiKrum, MinimumDiameter, Smea, Caf, Monna])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_share_of_few_updates_rounds_to_zero_and_gives_the_mean(combine: Combine, kind: Any, n: int) -> None:
    rows = rows_of(1, n=9)[:n]
    assert combine(kind(f=0.2), rows) == pytest.approx(rows.mean(0))


def test_enumerating_rules_refuse_what_would_take_forever(combine: Combine) -> None:
    for kind in (MinimumDiameter, Smea):
        with pytest.raises(ValueError, match="10272278170 subsets"):
            combine(kind(f=10), rows_of(0, n=50))
        with pytest.raises(ValueError, match="limit"):
            kind(limit=0)


def test_neighbours_and_kept_updates_of_krum_can_be_set(combine: Combine) -> None:
    rows = rows_of(7)
    best = np.argsort(krum_scores(rows, 6), kind="stable")
    assert combine(Krum(f=2, neighbours=6), rows) == pytest.approx(rows[best[0]])
    assert combine(MultiKrum(f=2, neighbours=6, keep=7), rows) == pytest.approx(rows[best[:7]].mean(0))
    for bad in (Krum(f=2, neighbours=9), MultiKrum(f=2, keep=10)):
        with pytest.raises(ValueError, match=r"9 updates|8 others"):
            combine(bad, rows)
    with pytest.raises(ValueError, match="keep=0"):
        MultiKrum(keep=0)


def test_a_trusted_client_that_is_absent_is_named(combine: Combine) -> None:
    with pytest.raises(ValueError, match="pivot=40"):
        combine(Monna(pivot=40), rows_of(0))


@pytest.mark.parametrize("rule", [GeometricMedian(), Caf(f=2), Krum(f=2), MultiKrum(f=2), Smea(f=2)])
def test_a_huge_update_changes_little_and_everything_ends(combine: Combine, rule: Any) -> None:
    rows = rows_of(3)
    rows[:2] = 1e30 * np.random.default_rng(0).normal(size=(2, 12))
    assert np.linalg.norm(combine(rule, rows) - rows[2:].mean(0)) < 3.0


def test_the_geometric_median_of_a_line_is_its_middle(combine: Combine) -> None:
    rows = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [1e3, 1e3]])
    assert combine(GeometricMedian(iterations=5000), rows) == pytest.approx([2.0, 2.0], abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (GeometricMedian, {"smoothing": 0.0}),
        (GeometricMedian, {"iterations": 0}),
        (GeometricMedian, {"tolerance": -1.0}),
        (CentredClipping, {"radius": 0.0}),
        (CentredClipping, {"iterations": 0}),
        (CentredClipping, {"start": "mean"}),
    ],
)
def test_values_out_of_range_are_named(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


@pytest.mark.parametrize("rule", EVERY, ids=IDS)
def test_linear_rules_need_no_coordinates(rule: Any) -> None:
    assert rule.needs == {"each", "distances"}
