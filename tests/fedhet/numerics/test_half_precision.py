"""Sums of half precision are accumulated in float32 and rounded once: the mean of n ones is one for every n."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.data.digits import Digits
from clients.data.even import Iid
from clients.data.shard import ClientShard
from clients.models.vision import mlp
from clients.work.adam import Adam as LocalAdam
from clients.work.feddyn import FedDynServer
from clients.work.sgd import Sgd
from clients.world import SimulatedWorld
from fedhet.bases import AbstractTransform
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.protocols import Work
from fedhet.testing.quadratic import FakeView, QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Memory, Tree, Update
from strategies.optimizers.fedopt import Adagrad, Adam, Yogi
from strategies.optimizers.sgd import Momentum
from strategies.rules.fednova import FedNova
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.rules.trimmed_mean import TrimmedMean
from strategies.spaces.full import Full
from strategies.spaces.last_layers import LastLayers
from strategies.staleness.port import Port
from strategies.staleness.pull import Pull
from strategies.staleness.taylor import Taylor
from strategies.staleness.tiers import Tiers

HALVES = [torch.bfloat16, torch.float16]
LAST = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Relative error of rounding once."""

both = pytest.mark.parametrize("kind", HALVES, ids=["bfloat16", "float16"])


def near_one(count: int, kind: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(300, generator=draw) * 0.01 + 1).to(kind) for _ in range(count)]


def flat(leaf: Tensor) -> FlatTree:
    return FlatTree(Schema((("w", Leaf(tuple(leaf.shape), leaf.dtype)),)), leaf.reshape(-1))


@both
@pytest.mark.parametrize("make", [flat, lambda leaf: {"w": leaf}], ids=["flat", "leaves"])
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_the_mean_of_n_updates_near_one_is_near_one(
    kind: torch.dtype, make: Callable[[Tensor], Tree], count: int
) -> None:
    rows = near_one(count, kind)
    got = tree.weighted_sum([make(row) for row in rows], [1 / count] * count)["w"]
    right = torch.stack([row.double() for row in rows]).mean(0)
    assert got.dtype == kind
    assert float((got.double() / right - 1).abs().max()) <= LAST[kind]


@both
def test_the_mean_of_a_thousand_ones_is_one_for_every_rule(kind: torch.dtype) -> None:
    view = FakeView(equal_clients(QuadraticWorld([1.0] * 1000, [0.0] * 1000)), Full())
    updates = [
        Update(Job(i, i, 0, 0, Budget(1 + i % 2), 0.0), flat(torch.ones(4, dtype=kind)), 1.0) for i in range(1000)
    ]
    for rule in (Mean(), Mean(over="count"), Median(), TrimmedMean(f=0.1), GeometricMedian()):
        got = rule(updates, Full(), view)["w"]
        assert got.dtype == kind and got.eq(1).all(), rule
    partly = Mean()([*updates[:-1], Update(updates[-1].job, {}, 1.0)], LastLayers(), view)["w"]
    assert partly.eq(1).all()
    assert float(FedNova(uniform=True)(updates, Full(), view)["w"][0]) == pytest.approx(1.125, rel=LAST[kind])


@both
def test_the_norm_of_a_long_update_is_finite(kind: torch.dtype) -> None:
    assert tree.squared_norm(flat(torch.full((1000,), 300.0, dtype=kind))) == pytest.approx(9e7, rel=1e-5)


SERVERS = [Momentum(momentum=0.99), Adam(), Adagrad(), Yogi(), FedDynServer(alpha=0.5)]


@both
@pytest.mark.parametrize("layer", SERVERS, ids=lambda x: type(x).__name__)
def test_server_moments_are_those_of_float32(layer: Any, kind: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    steps = [torch.tensor(1e-3 * (1 + 0.1 * rng.normal(size=50))).to(kind) for _ in range(300)]
    ends = []
    for width in (kind, torch.float32):
        view = FakeView(equal_clients(QuadraticWorld([1.0] * 4, [0.0] * 4)), Full())
        view.cohort = [Job(0, 0, 0, 1, Budget(), 0.0)]
        memory = Memory()
        for step in steps:
            last = layer.finish(flat(step.to(width)), view, memory)["w"]
        assert last.dtype == width
        assert all(leaf.dtype == torch.float32 for leaf in memory.values())
        ends.append(last.float())
    np.testing.assert_allclose(ends[0], ends[1], rtol=1.01 * LAST[kind])


@both
@pytest.mark.parametrize("layer", [Pull(), Taylor(lam=1.0), Taylor(lam=1.0, adaptive=True), Port(), Tiers(2)])
def test_what_staleness_makes_of_an_update_is_rounded_once(layer: AbstractTransform, kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    now, old, delta = (torch.randn(200, generator=draw).to(kind) for _ in range(3))
    ends = []
    for width in (kind, torch.float32):
        view = FakeView(equal_clients(QuadraticWorld([1.0] * 2, [0.0] * 2)), Full(), flat(now.to(width)), version=3)
        view.bases = {0: flat(old.to(width))}
        view.cohort = [Job(0, 0, 0, 1, Budget(2), 0.0)]
        memory = Memory()
        layer.finish(flat(delta.to(width)), view, memory)
        update = layer.arrive(Update(view.cohort[0], flat(delta.to(width)), 1.0), view, memory)
        step = layer.finish(update.delta, view, memory)["w"]
        assert step.dtype == width
        ends.append((step.double(), update.weight))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=2 * LAST[kind], atol=2 * LAST[kind])
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-6)


@pytest.mark.parametrize("work", [Sgd(lr=1e-4, momentum=0.5), LocalAdam(lr=1e-4)], ids=["sgd", "adam"])
def test_the_mean_loss_of_many_steps_is_a_mean(work: Work) -> None:
    model = Model(nn.Linear(4, 2).to(torch.bfloat16), lambda output, y: output.sum() * 0 + 1.0)
    x, y = torch.zeros(8, 4, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int64)
    told = work.run(model, ClientShard(x, y, np.arange(8), 0, 0, 0), Job(0, 0, 0, 0, Budget(600), 0.0), {})
    assert told["loss"] == 1.0


@both
def test_a_model_in_half_precision_gives_a_warning(kind: torch.dtype) -> None:
    def notices(dtype: torch.dtype) -> list[str]:
        def halved(input_shape: tuple[int, ...], classes: int) -> nn.Module:
            return mlp(input_shape=input_shape, classes=classes).to(dtype)

        world = SimulatedWorld(Digits(), Iid(), halved, clients=2, seed=0)
        world.model()
        return list(world.describe().get("notices", []))

    (notice,) = notices(kind)
    assert str(kind).removeprefix("torch.") in notice and "no step smaller than about" in notice
    assert notices(torch.float32) == []
