"""Sums over clients in half precision: formed in float32 and rounded once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.work.feddyn import FedDynServer
from fedhet import tree
from fedhet.tree import FlatTree, Leaf, Schema
from strategies.optimizers.fedopt import Adagrad
from strategies.optimizers.sgd import Momentum
from strategies.rules.median import Median
from strategies.spaces.full import Full
from strategies.staleness.ca2fl import CA2FL

HALF = [torch.bfloat16, torch.float16]


def trees(rows: list[torch.Tensor], flat: bool = True) -> list[tree.Tree]:
    schema = Schema((("w", Leaf((len(rows[0]),), rows[0].dtype)),))
    return [FlatTree(schema, row) if flat else {"w": row} for row in rows]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_the_mean_of_ones_is_one(kind: torch.dtype, count: int, flat: bool) -> None:
    mean = tree.weighted_sum(trees([torch.ones(5, dtype=kind)] * count, flat), [1 / count] * count)
    assert mean["w"].dtype == kind
    assert torch.equal(mean["w"], torch.ones(5, dtype=kind))


@pytest.mark.parametrize("kind", HALF)
@given(st.integers(0, 1 << 30), st.integers(2, 200))
def test_a_sum_is_the_exact_one_rounded_once_to_the_last_bit_or_its_neighbour(
    kind: torch.dtype, seed: int, count: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = [(torch.randn(7, generator=draw) + 1).to(kind) for _ in range(count)]
    got = tree.weighted_sum(trees(rows), [1 / count] * count)["w"].double()
    right = torch.stack([row.double() for row in rows]).mean(0)
    assert (got - right).abs().max() <= torch.finfo(kind).eps * right.abs().max().clamp(min=1.0)


def test_a_sum_that_passes_through_large_numbers_does_not_overflow() -> None:
    rows = [torch.full((3,), 60_000.0, dtype=torch.float16)] * 4
    assert tree.weighted_sum(trees(rows), [1.0, 1.0, -1.0, -0.5])["w"].tolist() == [30_000.0] * 3


def test_lengths_are_finite_where_squares_are_not() -> None:
    (long,) = trees([torch.full((100,), 300.0, dtype=torch.float16)])
    assert tree.squared_norm(long) == pytest.approx(9e6)


@pytest.mark.parametrize("kind", HALF)
def test_float32_is_summed_as_ever(kind: torch.dtype) -> None:
    rows = [torch.randn(1000, generator=torch.Generator().manual_seed(k)) for k in range(9)]
    total = torch.zeros(1000)
    for k, row in enumerate(rows):
        total.add_(row, alpha=0.1 * k)
    assert torch.equal(tree.weighted_sum(trees(rows), [0.1 * k for k in range(9)])["w"], total)
    assert tree.widened(rows[0]) is rows[0] and tree.widened(rows[0].to(kind)).dtype == torch.float32


@pytest.mark.parametrize("layer", [Momentum(lr=1.0, momentum=0.99), Adagrad(lr=1.0), FedDynServer(alpha=1.0)])
def test_what_a_server_optimizer_remembers_is_in_float32(layer: object) -> None:
    view = SimpleNamespace(cohort=[SimpleNamespace(client=0, turn=1)], roster=[0])
    half, full = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for _ in range(300):
        (small,) = trees([torch.full((2,), 2.0**-7, dtype=torch.bfloat16)])
        step = layer.finish(small, view, half)  # type: ignore[attr-defined]
        exact = layer.finish(FlatTree(Schema.of({"w": torch.zeros(2)}), small["w"].float()), view, full)  # type: ignore[attr-defined]
    assert step["w"].dtype == torch.bfloat16
    assert {leaf.dtype for leaf in half.values()} == {torch.float32}
    assert torch.equal(step["w"], exact["w"].bfloat16())


def test_cached_displacements_add_up() -> None:
    layer, memory = CA2FL(), dict[str, torch.Tensor]()
    view = SimpleNamespace(roster=range(1000), version=0)
    for client in range(1000):
        (delta,) = trees([torch.ones(2, dtype=torch.bfloat16)])
        update = SimpleNamespace(delta=delta, scale=1.0, job=SimpleNamespace(client=client))
        layer.arrive(update, view, memory)  # type: ignore[arg-type]
    step = layer.finish(trees([torch.zeros(2, dtype=torch.bfloat16)])[0], view, memory)  # type: ignore[arg-type]
    assert step["w"].dtype == torch.bfloat16 and memory["total"].tolist() == [1000.0, 1000.0]


def test_a_rule_of_coordinates_answers_in_the_dtype_of_the_updates() -> None:
    from fedhet.bases.rule import Rows
    from fedhet.types import Budget, Job, Update

    deltas = trees([torch.full((4,), float(k), dtype=torch.bfloat16) for k in range(5)])
    updates = [Update(Job(k, k, 0, 0, Budget(1), 0.0), delta, 1.0) for k, delta in enumerate(deltas)]
    answer = Rows.of(updates, Full()).reduce(Median())
    assert answer["w"].dtype == torch.bfloat16 and answer["w"].tolist() == [2.0] * 4
