"""The Flag Aggregator against a dense singular value decomposition, and its robustness by parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhet.testing.quadratic import FakeView
from strategies.rules.flag import Flag, subspace
from strategies.rules.unit_mean import UnitMean

Combine = Callable[..., np.ndarray]
few = settings(max_examples=settings.default.max_examples // 5)


def dense(rows: np.ndarray, flag: Flag) -> np.ndarray:
    """The same estimator on D x n columns, every pair column formed."""
    x = rows.T
    n, s = x.shape[1], np.linalg.norm(rows, axis=1)
    m = min(n, flag.dimension or math.ceil((n + 1) / 2))
    unit, eps = x / s, 1e-7
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j] if flag.lam else []
    if flag.pairs == "paper":
        apart = [(x[:, i] - x[:, j]) / np.linalg.norm(x[:, i] - x[:, j]) for i, j in pairs]
    else:
        apart = [unit[:, i] - unit[:, j] for i, j in pairs]
    difference = np.array(apart).reshape(len(pairs), len(x)).T
    v, u, before = np.zeros(n), np.zeros(len(pairs)), math.inf
    for _ in range(flag.iterations):
        columns = [unit * (np.abs(1 - v) + eps) ** -0.25]
        if pairs and flag.pairs == "paper":
            columns.append(difference * np.sqrt(flag.lam / (n - 1) * (np.abs(1 - u) + eps) ** -0.5))
        elif pairs:
            columns.append(difference * flag.lam / (n * (n - 1)) * (np.abs(1 - u) + eps) ** -0.25)
        y, singular, _ = np.linalg.svd(np.hstack(columns), full_matrices=False)
        y = y[:, :m][:, singular[:m] ** 2 > 1e-12 * singular[0] ** 2]
        v = np.clip(((y.T @ unit) ** 2).sum(0), 0, 1)
        u = ((y.T @ difference) ** 2).sum(0) if pairs else u
        if flag.pairs == "paper":
            u = np.clip(u, 0, 1)
        objective = np.sqrt(1 - v).sum() + flag.lam / max(1, n - 1) * np.sqrt(np.maximum(1 - u, 0)).sum()
        if abs(before - objective) < flag.tolerance:
            break
        before = objective
    length = {"paper": s / n, "authors": np.full(n, 1 / m), "unit": np.full(n, np.median(s) / n)}[flag.out]
    result: np.ndarray = y @ (y.T @ (unit @ length))
    return result


@pytest.mark.parametrize("out", ["unit", "authors", "paper"])
@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize(("lam", "pairs"), [(0.0, "paper"), (7.0, "paper"), (7.0, "authors")])
@pytest.mark.parametrize("n", [3, 7, 12])
def test_the_gram_form_is_the_dense_form(
    combine: Combine, cloud: Any, out: str, iterations: int, lam: float, pairs: str, n: int
) -> None:
    flag = Flag(out=out, lam=lam, pairs=pairs, iterations=iterations)
    rows = cloud(n, 40, seed=n)
    assert combine(flag, rows) == pytest.approx(dense(rows, flag), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("lam", [0.0, 5.0])
@few
@given(seed=st.integers(0, 10_000), n=st.integers(1, 10), iterations=st.integers(1, 6))
def test_the_basis_is_orthonormal(lam: float, seed: int, n: int, iterations: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, 15))
    gram = rows @ rows.T
    basis = subspace(gram, math.ceil((n + 1) / 2), lam, "paper", iterations, 1e-10)
    s = np.sqrt(np.diag(gram))
    assert basis.T @ (gram / np.outer(s, s)) @ basis == pytest.approx(np.eye(basis.shape[1]), abs=1e-8)


@few
@given(seed=st.integers(0, 10_000))
def test_permuted_updates_give_the_same_answer(combine: Combine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(8, 20)) + rng.normal(size=20)
    flag = Flag(iterations=1)
    assert combine(flag, rows[rng.permutation(8)]) == pytest.approx(combine(flag, rows), abs=1e-9)


@few
@given(seed=st.integers(0, 10_000))
def test_permuted_updates_have_permuted_coefficients(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, order = rng.normal(size=(8, 20)) + rng.normal(size=20), rng.permutation(8)
    flag, gram, ones, view = Flag(iterations=1), rows @ rows.T, np.ones(8), FakeView({}, None)  # type: ignore[arg-type]
    c = flag.coefficients(gram, ones, (), view)
    assert flag.coefficients(gram[np.ix_(order, order)], ones, (), view) == pytest.approx(c[order], abs=1e-9)


@few
@given(seed=st.integers(0, 10_000))
def test_a_rotation_of_the_updates_rotates_the_answer(combine: Combine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(6, 9)) + rng.normal(size=9)
    turn, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    flag = Flag(iterations=1)
    assert combine(flag, rows @ turn) == pytest.approx(combine(flag, rows) @ turn, abs=1e-8)


def test_the_length_of_one_update_does_not_turn_the_subspace(cloud: Any) -> None:
    rows = cloud(7, 30)
    longer = rows.copy()
    longer[2] *= 137.0
    explained = []
    for x in (rows, longer):
        gram = x @ x.T
        s = np.sqrt(np.diag(gram))
        basis = subspace(gram, 4, 0.0, "paper", 3, 1e-10)
        explained.append(((basis.T @ (gram / np.outer(s, s))) ** 2).sum(0))
    assert explained[0] == pytest.approx(explained[1], abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_subspace_that_holds_everything_gives_the_mean_in_the_papers_form(
    combine: Combine, cloud: Any, n: int
) -> None:
    rows = cloud(n, 25)
    flag = Flag(out="paper", dimension=None if n <= 2 else n)
    assert combine(flag, rows) == pytest.approx(rows.mean(0), rel=1e-9)


def test_equal_updates_are_returned_except_by_the_authors_scaling(combine: Combine) -> None:
    g = np.random.default_rng(3).normal(size=12)
    rows = np.tile(g, (7, 1))
    assert combine(Flag(out="paper"), rows) == pytest.approx(g)
    assert combine(Flag(out="unit"), rows) == pytest.approx(g)
    assert combine(Flag(out="authors"), rows) == pytest.approx(7 / 4 * g / np.linalg.norm(g))


@few
@given(seed=st.integers(0, 10_000), far=st.floats(1.0, 1e6))
def test_the_unit_form_is_never_longer_than_the_median_update(combine: Combine, seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(9, 12))
    rows[:4] *= far
    assert np.linalg.norm(combine(Flag(), rows)) <= np.median(np.linalg.norm(rows, axis=1)) * (1 + 1e-9)


def test_the_papers_form_follows_one_huge_update(combine: Combine, cloud: Any) -> None:
    rows = cloud(9, 30)
    rows[0] = 1e6 * np.random.default_rng(1).normal(size=30)
    published, bounded = combine(Flag(out="paper"), rows), combine(Flag(), rows)
    assert np.linalg.norm(published) > 1e4 * np.linalg.norm(bounded)


def test_an_update_of_length_zero_changes_nothing(combine: Combine, cloud: Any) -> None:
    rows = cloud(6, 20)
    more = np.insert(rows, 3, 0.0, axis=0)
    assert combine(Flag(), more) == pytest.approx(combine(Flag(), rows))
    assert not combine(Flag(), np.zeros((4, 5))).any()


def test_updates_that_are_not_finite_are_refused(combine: Combine, cloud: Any) -> None:
    rows = cloud(5, 10)
    rows[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"not finite \(clients \[1\]\)"):
        combine(Flag(), rows)


def test_the_mean_of_unit_vectors_is_that(combine: Combine, cloud: Any) -> None:
    rows = cloud(5, 10)
    s = np.linalg.norm(rows, axis=1)
    assert combine(UnitMean(), rows) == pytest.approx(np.median(s) * (rows / s[:, None]).mean(0))
    rows[2] = 0.0
    assert np.isfinite(combine(UnitMean(), rows)).all()


@pytest.mark.parametrize(
    "bad", [{"out": "best"}, {"pairs": "all"}, {"dimension": 0}, {"lam": -1.0}, {"iterations": 0}, {"tolerance": -1.0}]
)
def test_values_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Flag(**bad)
