"""Coordinate-wise rules against sorting in plain Python, on blocks that do not divide the vector."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhet.bases import rule as engine
from strategies.rules.bulyan import Bulyan
from strategies.rules.meamed import Meamed
from strategies.rules.median import Median
from strategies.rules.order import mean_around, ordered
from strategies.rules.phocas import Phocas
from strategies.rules.trimmed_mean import TrimmedMean

Combine = Callable[..., np.ndarray]
SEEDS = st.integers(0, 100_000)
few = settings(max_examples=settings.default.max_examples // 5)


def trimmed(column: list[float], f: int) -> float:
    return float(np.mean(sorted(column)[f : len(column) - f]))


def around(column: list[float], centre: float, keep: int) -> float:
    return float(np.mean(sorted(column, key=lambda x: (abs(x - centre), x))[:keep]))


def others(x: np.ndarray, left: list[int]) -> list[list[float]]:
    return [sorted(float(((x[i] - x[j]) ** 2).sum()) for j in left if j != i) for i in left]


def bulyan(x: np.ndarray, f: int) -> np.ndarray:
    left, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        scores = [[*apart[: max(1, len(left) - f - 2)], sum(apart)] for apart in others(x, left)]
        chosen.append(left.pop(min(range(len(left)), key=lambda i: (sum(scores[i][:-1]), scores[i][-1]))))
    return np.array([around(list(c), median(c), len(x) - 4 * f) for c in x[chosen].T])


def columns(rule: Callable[[list[float]], float]) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda x, f: np.array([rule([float(v) for v in c]) for c in x.T])


F = 2
CASES: list[tuple[Any, Callable[[np.ndarray, int], np.ndarray]]] = [
    (Median(), columns(median)),
    (TrimmedMean(f=F), columns(lambda c: trimmed(c, F))),
    (Meamed(f=F), columns(lambda c: around(c, median(c), len(c) - F))),
    (Phocas(f=F), columns(lambda c: around(c, trimmed(c, F), len(c) - F))),
    (Bulyan(f=F), bulyan),
]
NAMES = [type(rule).__name__ for rule, _ in CASES]


def rows_of(seed: int, n: int = 11, d: int = 21) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))
    rows[1:3] += 4.0 * rng.normal(size=(2, d))
    return rows


@pytest.mark.parametrize(("rule", "reference"), CASES, ids=NAMES)
@pytest.mark.parametrize("n", [11, 12])
@few
@given(seed=SEEDS)
def test_a_rule_is_its_definition(combine: Combine, rule: Any, reference: Any, n: int, seed: int) -> None:
    rows = rows_of(seed, n)
    assert combine(rule, rows) == pytest.approx(reference(rows, F), abs=1e-9)


@pytest.mark.parametrize("rule", [r for r, _ in CASES], ids=NAMES)
def test_blocks_leave_no_seam(combine: Combine, rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(0, d=53)
    whole = combine(rule, rows)
    monkeypatch.setattr(engine, "BLOCK", 8)
    assert combine(rule, rows) == pytest.approx(whole, abs=1e-15)


@pytest.mark.parametrize("rule", [r for r, _ in CASES], ids=NAMES)
@few
@given(seed=SEEDS, factor=st.sampled_from([2.0**k for k in range(-20, 20)]))
def test_order_shift_and_scale_commute_with_the_rule(combine: Combine, rule: Any, seed: int, factor: float) -> None:
    rows = rows_of(seed)
    plain = combine(rule, rows)
    order = np.random.default_rng(seed).permutation(11)
    assert combine(rule, rows[order]) == pytest.approx(plain, abs=1e-9)
    assert combine(rule, rows + 3.0) == pytest.approx(plain + 3.0, abs=1e-9)
    assert combine(rule, factor * rows) == pytest.approx(factor * plain, rel=1e-9, abs=1e-9 * factor)


@pytest.mark.parametrize("rule", [r for r, _ in CASES], ids=NAMES)
def test_equal_updates_are_returned_and_scales_are_part_of_them(combine: Combine, rule: Any) -> None:
    g = np.random.default_rng(1).normal(size=21)
    assert combine(rule, np.tile(g, (11, 1))) == pytest.approx(g)
    rows, scales = rows_of(2), np.linspace(0.2, 1.0, 11)
    assert combine(rule, rows, scales=scales) == pytest.approx(combine(rule, rows * scales[:, None]), abs=1e-9)
    assert (combine(rule, rows, weights=np.arange(1, 12)) == combine(rule, rows)).all()


@pytest.mark.parametrize("rule", [r for r, _ in CASES], ids=NAMES)
def test_huge_values_do_not_get_through(combine: Combine, rule: Any) -> None:
    rows = rows_of(5).astype(np.float32)
    rows[:2] = [[1e30], [-1e30]]
    assert np.abs(combine(rule, rows)).max() < 10.0


@pytest.mark.parametrize("rule", [r for r, _ in CASES], ids=NAMES)
def test_coordinate_rules_need_leaves_that_line_up(rule: Any) -> None:
    assert rule.needs - {"distances"} == {"each", "coordinates"}


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=14),
    st.floats(-100, 100),
    st.data(),
)
def test_the_window_holds_the_values_nearest_to_the_centre(values: list[float], centre: float, data: Any) -> None:
    keep = data.draw(st.integers(1, len(values)))
    rows = ordered(torch.tensor(values, dtype=torch.float64)[:, None])
    got = float(mean_around(rows, torch.tensor([centre], dtype=torch.float64), keep))
    nearest = sorted(abs(v - centre) for v in values)[:keep]
    window = [
        k
        for k in range(len(values) - keep + 1)
        if np.allclose(sorted(abs(float(v) - centre) for v in rows[k : k + keep, 0]), nearest, rtol=0, atol=1e-12)
    ]
    assert any(got == pytest.approx(float(rows[k : k + keep, 0].mean()), abs=1e-9) for k in window)


def test_of_two_values_equally_far_the_smaller_is_kept() -> None:
    rows = torch.tensor([[-1.0], [-1.0], [0.0], [0.5], [1.0]])
    assert float(mean_around(rows, torch.zeros(1), 3)) == pytest.approx((-1.0 + 0.0 + 0.5) / 3)
    assert float(mean_around(rows, torch.zeros(1), 1)) == 0.0


def test_plain_mappings_of_different_dtypes_are_reduced_leaf_by_leaf(fake_view: Any, make_updates: Any) -> None:
    from dataclasses import replace
    from types import SimpleNamespace

    base = make_updates(np.zeros((3, 2)))
    trees = [
        {"w": torch.full((2, 2), float(i)), "b": torch.full((3,), float(i), dtype=torch.float64)} for i in range(3)
    ]
    updates = [replace(u, delta=t, scale=0.5) for u, t in zip(base, trees, strict=True)]
    got = Median()(updates, SimpleNamespace(), fake_view())
    assert got["w"].shape == (2, 2) and got["w"].dtype == torch.float32 and (got["w"] == 0.5).all()
    assert got["b"].dtype == torch.float64 and (got["b"] == 0.5).all()
    with pytest.raises(ValueError, match="equal names and shapes"):
        Median()([*updates[:2], replace(base[2], delta={"w": torch.zeros(2, 2)})], SimpleNamespace(), fake_view())


@pytest.mark.parametrize(("rule", "n"), [(TrimmedMean(f=3), 6), (Meamed(f=3), 6), (Phocas(f=3), 6), (Bulyan(f=2), 10)])
def test_too_few_updates_for_f_are_refused(combine: Combine, rule: Any, n: int) -> None:
    with pytest.raises(ValueError, match="updates or more to tolerate f="):
        combine(rule, rows_of(0, n))


@pytest.mark.parametrize("kind", [TrimmedMean, Meamed, Phocas, Bulyan])
def test_a_share_of_few_updates_rounds_to_zero_and_gives_the_mean(combine: Combine, kind: Any) -> None:
    rows = rows_of(3, 4)
    assert combine(kind(f=0.2), rows) == pytest.approx(rows.mean(0))
    with pytest.raises(ValueError, match=r"f=0\.5"):
        kind(f=0.5)
