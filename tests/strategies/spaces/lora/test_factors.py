"""The algebra of factors against dense float64 matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.spaces.lora import factors
from strategies.spaces.lora.factors import Pair, added, compress, gram, incompressible, norm, stack

D, K = 13, 9


def pair(seed: int, rank: int, d: int = D, k: int = K, kind: torch.dtype = torch.float32) -> Pair:
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(d, rank, generator=g, dtype=torch.float64)
    right = torch.randn(rank, k, generator=g, dtype=torch.float64)
    return Pair(left.to(kind), right.to(kind))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative Frobenius distance."""
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


@settings(max_examples=settings.default.max_examples // 2)
@given(
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    alphas=st.lists(st.floats(0.5, 40), min_size=5, max_size=5),
    weights=st.lists(st.floats(0, 9), min_size=5, max_size=5),
)
def test_a_stack_is_the_sum_of_products_for_any_ranks_scalings_and_weights(ranks, seed, alphas, weights) -> None:
    weights[0] += 1.0
    n = len(ranks)
    p = np.array(weights[:n]) / sum(weights[:n])
    pairs = [pair(seed + i, r) for i, r in enumerate(ranks)]
    if n > 1:
        pairs[1] = Pair(torch.zeros_like(pairs[1].left), pairs[1].right)  # never trained
    scalings = [alphas[i] / (r if i % 2 else r**0.5) for i, r in enumerate(ranks)]
    expected = sum(p[i] * scalings[i] * pairs[i].dense for i in range(n))
    scaled = [Pair(q.left, q.right * s) for q, s in zip(pairs, scalings, strict=True)]
    found = stack(scaled, p.tolist())
    assert found.rank == sum(ranks) and found.size == sum(ranks) * (D + K)
    assert gap(found.dense, expected) < 1e-6


def test_the_order_of_clients_and_a_client_split_in_two_change_no_product() -> None:
    pairs, c = [pair(i, r) for i, r in enumerate((3, 1, 5))], [0.2, 0.5, 0.3]
    whole = stack(pairs, c).dense
    assert gap(stack(pairs[::-1], c[::-1]).dense, whole) < 1e-6
    assert gap(stack([*pairs, pairs[1]], [0.2, 0.25, 0.3, 0.25]).dense, whole) < 1e-6


def test_weights_on_both_factors_are_another_sum() -> None:
    pairs, c = [pair(i, 4) for i in range(3)], [0.5, 0.3, 0.2]
    twice = stack([Pair(q.left * x, q.right) for q, x in zip(pairs, c, strict=True)], c)
    assert gap(twice.dense, stack(pairs, c).dense) > 0.3


def test_inner_products_need_no_product_and_any_ranks_mix() -> None:
    pairs = [pair(i, r) for i, r in enumerate((2, 7, 1, 4))]
    rows = np.stack([q.dense.flatten().numpy() for q in pairs])
    found = gram(pairs)
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-10, atol=1e-10)
    assert np.array_equal(found, found.T) and found.dtype == np.float64
    assert norm(pairs[1]) == pytest.approx(np.linalg.norm(rows[1]), rel=1e-10)
    empty = Pair(torch.zeros(D, 0), torch.zeros(0, K))
    assert gram([pairs[0], empty, pairs[1]])[1].tolist() == [0.0, 0.0, 0.0] and norm(empty) == 0.0


@pytest.mark.parametrize("rank", [3, 8, 9, 20])
def test_compression_finds_the_singular_values_of_the_dense_product(rank: int) -> None:
    given_pair = pair(rank, rank)
    dense = torch.linalg.svdvals(given_pair.dense)
    small, lost = compress(given_pair)
    assert lost < 1e-7 and small.rank == min(rank, D, K)
    assert gap(small.dense, given_pair.dense) < 1e-6
    found = small.left.double().norm(dim=0) * small.right.double().norm(dim=1)
    np.testing.assert_allclose(found, dense[: small.rank], rtol=1e-5)
    np.testing.assert_allclose(small.left.double().norm(dim=0), small.right.double().norm(dim=1), rtol=1e-5)
    gram_of_left = small.left.double().T @ small.left.double()
    np.testing.assert_allclose(gram_of_left, gram_of_left.diag().diag(), atol=1e-5 * float(dense[0]))


@pytest.mark.parametrize("rank", [6, 14])
def test_truncation_is_as_good_as_any_matrix_of_that_rank(rank: int) -> None:
    given_pair = pair(5, rank, kind=torch.float64)
    s = torch.linalg.svdvals(given_pair.dense)
    for q in (1, 2, 5):
        small, lost = compress(given_pair, rank=q)
        best = float(s[q:].square().sum().sqrt() / s.square().sum().sqrt())
        assert small.rank == q
        assert gap(small.dense, given_pair.dense) == pytest.approx(best, rel=1e-9)
        assert lost == pytest.approx(best, rel=1e-9)
        u, sv, vt = torch.linalg.svd(given_pair.dense)
        assert gap(small.dense, u[:, :q] * sv[:q] @ vt[:q]) < 1e-9


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_least_rank_with_the_energy_is_kept(energy: float) -> None:
    given_pair = pair(8, 8, kind=torch.float64)
    squares = torch.linalg.svdvals(given_pair.dense).square()
    share = squares.cumsum(0) / squares.sum()
    small, lost = compress(given_pair, energy=energy)
    assert share[small.rank - 1] >= energy - 1e-12
    assert small.rank == 1 or share[small.rank - 2] < energy
    assert lost**2 == pytest.approx(1 - float(share[small.rank - 1]), abs=1e-9)


def test_columns_that_add_nothing_are_dropped_and_nothing_at_all_is_one_column_of_zeros() -> None:
    q = pair(1, 3)
    doubled = stack([q, q, Pair(torch.zeros_like(q.left), q.right)], [0.5, 0.25, 1.0])
    assert compress(doubled)[0].rank == 3
    nothing, lost = compress(Pair(torch.zeros(D, 2), torch.zeros(2, K)))
    assert nothing.rank == 1 and lost == 0.0 and not nothing.dense.any()
    assert compress(q, floor=1e9)[0].rank == 1


def test_equal_products_compress_to_equal_signs_whatever_their_factors() -> None:
    q = pair(2, 4, kind=torch.float64)
    m = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    turned = Pair(q.left @ torch.linalg.inv(m), m @ q.right)
    a, b = compress(q)[0], compress(turned)[0]
    assert gap(a.left, b.left) < 1e-8 and gap(a.right, b.right) < 1e-8
    rows = a.left.abs().argmax(0)
    assert (a.left[rows, torch.arange(4)] > 0).all()


def test_sides_of_a_hundred_thousand_are_no_matter() -> None:
    """The dense product would be eighty gigabytes."""
    side = 100_000
    q = stack([pair(1, 2, side, side), pair(2, 1, side, side)], [0.5, 0.5])
    small, lost = compress(q, rank=2)
    assert small.left.shape == (side, 2) and 0 < lost < 1
    assert gram([q])[0, 0] > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_weight_takes_a_product_with_one_rounding(kind: torch.dtype) -> None:
    weight = torch.randn(1500, 3, 2, generator=torch.Generator().manual_seed(1), dtype=kind)
    q = pair(4, 3, 1500, 6, kind)
    before = weight.clone()
    found = added(weight, q)
    expected = (weight.double().view(1500, 6) + q.dense).to(kind).view_as(weight)
    assert torch.equal(weight, before) and found.shape == weight.shape and found.dtype == kind
    torch.testing.assert_close(found, expected, rtol=2e-16 if kind == torch.float64 else 1e-7, atol=1e-15)


def test_a_product_is_added_block_by_block_into_any_memory_the_weight_s_own_too(monkeypatch: Any) -> None:
    weight, q = torch.randn(D, K, generator=torch.Generator().manual_seed(1)), pair(4, 3)
    whole, out = added(weight, q), torch.full((D, K), 7.0)
    monkeypatch.setattr(factors, "BLOCK", 5 * K)  # rows 0-4, 5-9 and 10-12
    assert added(weight, q, out) is out
    torch.testing.assert_close(out, whole, rtol=1e-7, atol=0.0)
    added(weight, q, weight)
    assert torch.equal(weight, out)


@settings(max_examples=settings.default.max_examples // 2)
@given(seed=st.integers(0, 999), rank=st.integers(1, 10), spread=st.floats(-40, 40), small=st.integers(0, 30))
def test_what_is_called_incompressible_keeps_every_column(seed: int, rank: int, spread: float, small: int) -> None:
    q = pair(seed, rank)
    scales = 2.0 ** torch.linspace(0, spread, rank)  # of columns, undone by the rows
    q = Pair(q.left * scales, q.right / scales[:, None])
    q.left[:, -1] *= 2.0**-small
    if incompressible(q):
        assert compress(q)[0].rank == rank
    elif rank < 4:
        assert small > 10, "columns of their own are not recognised"


def test_stacks_that_repeat_themselves_or_hold_zeros_are_not_called_incompressible() -> None:
    q = pair(1, 3)
    assert incompressible(q)
    zeros = Pair(torch.zeros_like(q.left), q.right)
    for other in (stack([q, q], [0.5, 0.5]), stack([q, zeros], [1.0, 1.0]), pair(2, K + 1), zeros):
        assert not incompressible(other)
    assert not incompressible(Pair(q.left[:, :0], q.right[:0]))


def test_small_steps_survive_where_bfloat16_would_lose_them() -> None:
    """Fifty merges, each far below a bfloat16 digit of the weights."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(D, K, generator=g)
    master, coarse, total = start.clone(), start.bfloat16(), torch.zeros(D, K, dtype=torch.float64)
    for seed in range(50):
        q = pair(seed, 2)
        q = Pair(q.left, q.right * 1e-3)
        master, coarse, total = added(master, q), added(coarse, q), total + q.dense
    assert gap(master.double() - start.double(), total) < 1e-4
    assert gap(coarse.double() - start.bfloat16().double(), total) > 0.2
