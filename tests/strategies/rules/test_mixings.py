"""Mixings before rules: the same result as computing the mixed rows and combining those."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhet.bases.rule import UpdateMatrix
from fedhet.numerics import tree
from fedhet.types import Budget, Job, Update
from strategies.rules.arc import Arc
from strategies.rules.bucketing import Bucketing
from strategies.rules.bulyan import Bulyan
from strategies.rules.centred_clipping import CentredClipping
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.flag import Flag
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.rules.nnm import Nnm
from strategies.rules.trimmed_mean import TrimmedMean

Combine = Callable[..., np.ndarray]
SEEDS = st.integers(0, 100_000)
few = settings(max_examples=settings.default.max_examples // 5)
RULES: list[Any] = [
    Mean(uniform=True),
    Krum(f=1),
    MultiKrum(f=1),
    GeometricMedian(iterations=300),
    CentredClipping(),
    Flag(iterations=1),
    Median(),
    TrimmedMean(f=1),
    Bulyan(f=1),
]


def rows_of(seed: int, n: int = 9, d: int = 14) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))
    rows[1:3] += 4.0 * rng.normal(size=(2, d))
    return rows


def clipped(x: np.ndarray, radius: float) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1)
    result: np.ndarray = x * np.minimum(1.0, radius / norms)[:, None]
    return result


def arc(x: np.ndarray, k: int) -> np.ndarray:
    return clipped(x, np.sort(np.linalg.norm(x, axis=1))[::-1][k])


def nnm(x: np.ndarray, f: int) -> np.ndarray:
    def near(i: int) -> np.ndarray:
        return np.argsort(np.linalg.norm(x - x[i], axis=1), kind="stable")[: len(x) - f]

    return np.array([x[near(i)].mean(0) for i in range(len(x))])


@pytest.mark.parametrize("rule", RULES, ids=[type(r).__name__ for r in RULES])
@few
@given(seed=SEEDS)
def test_a_chain_is_the_rule_on_the_mixed_rows(combine: Combine, rule: Any, seed: int) -> None:
    rows = rows_of(seed)
    mixed = nnm(arc(rows, 3), 2)  # floor(2 * 2/9 * 7) = 3
    assert combine(Chain([Arc(2), Nnm(2)], rule), rows) == pytest.approx(combine(rule, mixed), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("mixing", "explicit"),
    [
        (Clipping(1.7), lambda x: clipped(x, 1.7)),
        (Arc(2), lambda x: arc(x, 3)),
        (Nnm(2), lambda x: nnm(x, 2)),
        (Nnm(0), lambda x: np.tile(x.mean(0), (len(x), 1))),
        (Arc(0), lambda x: x),
    ],
)
@few
@given(seed=SEEDS)
def test_a_mixing_makes_the_rows_it_says(combine: Combine, mixing: Any, explicit: Any, seed: int) -> None:
    rows = rows_of(seed)
    want = explicit(rows)
    for rule in (Mean(uniform=True), Median()):
        assert combine(Chain([mixing], rule), rows) == pytest.approx(combine(rule, want), abs=1e-9)


def test_scales_and_weights_keep_their_meaning_behind_mixtures(combine: Combine) -> None:
    rows, scales, weights = rows_of(3), np.linspace(0.2, 1.0, 9), np.arange(1.0, 10.0)
    whole = rows * scales[:, None]
    for rule in (Mean(), Median(), GeometricMedian()):
        chain = Chain([Clipping(1.5)], rule)
        assert combine(chain, rows, scales, weights) == pytest.approx(combine(chain, whole, weights=weights), abs=1e-9)
    want = np.average(clipped(whole, 1.5), axis=0, weights=weights)
    assert combine(Chain([Clipping(1.5)], Mean()), rows, scales, weights) == pytest.approx(want)
    buckets = combine(Chain([Bucketing(9)], Mean()), rows, scales, weights)
    assert buckets == pytest.approx(whole.mean(0))


@pytest.mark.parametrize(("n", "f", "k"), [(10, 1, 1), (10, 2, 3), (10, 3, 4), (20, 4, 6), (15, 3, 4)])
def test_adaptive_clipping_cuts_the_published_number(combine: Combine, n: int, f: int, k: int) -> None:
    rows = np.diag(np.arange(1.0, n + 1.0))
    got = combine(Chain([Arc(f)], Mean(uniform=True)), rows) * n
    assert (got < np.arange(1.0, n + 1.0) - 1e-9).sum() == k
    assert got == pytest.approx(np.minimum(np.arange(1.0, n + 1.0), n - k))


@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_buckets_are_a_partition(combine: Combine, size: int, fake_view: Any, make_updates: Any) -> None:
    rows = Bucketing(size)(UpdateMatrix.of(make_updates(np.eye(9), weights=np.arange(1.0, 10.0)), None), fake_view())
    assert rows.matrix is not None
    member = rows.matrix > 0
    assert len(rows) == -(-9 // size) and (member.sum(0) == 1).all()
    assert rows.matrix.sum(1) == pytest.approx(np.ones(len(rows)))
    assert sorted(member.sum(1)) == sorted([min(size, 9)] * (9 // size) + ([9 % size] if 9 % size else []))
    assert rows.weights == pytest.approx(member @ np.arange(1.0, 10.0))


def test_buckets_are_drawn_from_the_servers_stream(fake_view: Any, make_updates: Any) -> None:
    rows, asked = UpdateMatrix.of(make_updates(np.eye(6)), None), []

    def rng(purpose: str) -> np.random.Generator:
        asked.append(purpose)
        return np.random.default_rng(len(asked))

    view = SimpleNamespace(rng=rng)
    first, second = (Bucketing(2)(rows, view).matrix for _ in range(2))
    assert asked == ["bucketing"] * 2 and (first != second).any()


def test_equal_updates_come_through_every_mixing(combine: Combine) -> None:
    g = np.random.default_rng(0).normal(size=14)
    for mixing in (Nnm(2), Arc(2), Bucketing(2), Clipping(100.0)):
        assert combine(Chain([mixing], Median()), np.tile(g, (9, 1))) == pytest.approx(g)


def test_chains_nest_and_an_empty_one_is_the_rule(combine: Combine) -> None:
    rows = rows_of(1)
    nested = Chain([Arc(2)], Chain([Nnm(2)], TrimmedMean(f=2)))
    assert combine(nested, rows) == pytest.approx(combine(Chain([Arc(2), Nnm(2)], TrimmedMean(f=2)), rows), abs=1e-12)
    assert (combine(Chain([], Krum(f=1)), rows) == combine(Krum(f=1), rows)).all()


def test_mixtures_may_be_named_and_left_out(combine: Combine) -> None:
    rows = rows_of(2)
    named = Chain({"arc": Arc(2), "buckets": None, "nnm": Nnm(2)}, Median())
    assert named == Chain([Arc(2), Nnm(2)], Median())
    assert (combine(named, rows) == combine(Chain([Arc(2), Nnm(2)], Median()), rows)).all()


def test_updates_are_read_once_however_long_the_chain(fake_view: Any, make_updates: Any) -> None:
    reads = []

    def gram(deltas: Any) -> np.ndarray:
        reads.append(len(deltas))
        return np.eye(9)

    space: Any = SimpleNamespace(gram=gram, combine=lambda deltas, c, s: c)
    Chain([Arc(2), Nnm(2), Bucketing(2)], GeometricMedian())(make_updates(np.eye(9)), space, fake_view())
    assert reads == [9]


def test_a_chain_needs_what_its_rule_needs() -> None:
    assert Chain([Nnm(1)], Krum(f=1)).needs == {"each", "distances"}
    assert Chain([Nnm(1)], Median()).needs == {"each", "coordinates", "distances"}
    assert Chain([Nnm(1)], Mean()).needs == {"each", "distances"}
    assert Chain([Clipping(1.0)], Mean()).needs == {"each"}
    assert Chain([], Mean()).needs == frozenset()
    with pytest.raises(ValueError, match="rule=function"):
        Chain([], lambda updates, space, view: {})  # type: ignore[arg-type]


@pytest.mark.parametrize("mixing", [Arc(5), Nnm(5)])
def test_too_few_updates_for_f_are_refused(combine: Combine, mixing: Any) -> None:
    with pytest.raises(ValueError, match="needs 11 updates or more to tolerate f=5"):
        combine(Chain([mixing], Median()), rows_of(0))


def test_values_out_of_range_are_named() -> None:
    for make, name in ((lambda: Clipping(0.0), "radius"), (lambda: Bucketing(0), "size"), (lambda: Nnm(-1), "f=-1")):
        with pytest.raises(ValueError, match=name):
            make()


class Factored:
    """Deltas B A of unequal rank, never multiplied out: inner products by traces, sums by stacking factors."""

    gives: ClassVar[frozenset[str]] = frozenset()

    def gram(self, deltas: Any) -> np.ndarray:
        return np.array([[float(((p["A"] @ q["A"].T) * (p["B"].T @ q["B"])).sum()) for q in deltas] for p in deltas])

    def combine(self, deltas: Any, coefficients: Any, scales: Any = None) -> Any:
        pairs = list(zip(deltas, tree.scaled(coefficients, scales), strict=True))
        return {"A": torch.cat([d["A"] for d, _ in pairs]), "B": torch.cat([d["B"] * c for d, c in pairs], dim=1)}


@pytest.mark.parametrize("rule", [r for r in RULES if "coordinates" not in r.needs], ids=lambda r: type(r).__name__)
def test_linear_rules_and_mixtures_work_on_factors_of_unequal_rank(combine: Combine, rule: Any, fake_view: Any) -> None:
    g = torch.Generator().manual_seed(0)
    ranks, scales = [1, 2, 3, 1, 2, 4, 2, 1, 3], np.linspace(0.4, 1.0, 9)
    base = torch.randn(5, 1, generator=g, dtype=torch.float64)
    updates = []
    for i, r in enumerate(ranks):
        delta = {
            "A": torch.randn(r, 6, generator=g, dtype=torch.float64),
            "B": base + torch.randn(5, r, generator=g, dtype=torch.float64),
        }
        updates.append(Update(Job(i, i, 0, 0, Budget(rank=r), 0.0), delta, 1.0, float(scales[i])))
    dense = np.stack([(u.delta["B"] @ u.delta["A"]).flatten().numpy() for u in updates])
    chain = Chain([Arc(2), Nnm(2)], rule)
    got = chain(updates, Factored(), fake_view())
    assert (got["B"] @ got["A"]).flatten().numpy() == pytest.approx(combine(chain, dense, scales), rel=1e-6, abs=1e-8)
