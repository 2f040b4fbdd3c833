"""Clients trained in one batch get the bits they get alone; other jobs run one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clients.data.partition import Partition
from clients.data.synthetic import Synthetic
from clients.models.vision import mlp
from clients.work.fedprox import FedProx
from clients.work.sgd import Sgd
from clients.world import SimulatedWorld
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method
from fedhet.model.flat_model import Model
from fedhet.native import mlp_sgd
from fedhet.native.mlp_batched import BatchedPerceptron
from fedhet.numerics import wire_format
from fedhet.types import Budget, Job
from strategies.budgets.fixed import Fixed
from strategies.privacy.noise import Noise
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

HIDDEN = (32, 64)


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of small models are compiled where there is a compiler; everything must hold without one, too."""
    if request.param == "torch":
        monkeypatch.setattr(mlp_sgd, "_load", lambda: "not looked for")


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("size", [2, 10, 33])
def test_steps_of_rows_are_those_of_each_alone(count: int, size: int) -> None:
    torch.manual_seed(size)
    model = Model(mlp(input_shape=(1, 8, 8), classes=10, hidden=HIDDEN))
    rows = rows_of(model, count)
    rows.flat.normal_().mul_(0.1)
    x, y = torch.randn(count, size, 1, 8, 8), torch.randint(0, 10, (count, size))
    exact, before = rows.agrees(size), rows.flat.clone()
    losses = rows.descend(x, y, 0.1)
    for start, row, inputs, targets, loss in zip(before, rows.flat, x, y, losses, strict=True):
        model.flat.copy_(start)
        alone = model.descend(inputs, targets, 0.1)
        torch.testing.assert_close(loss, alone)
        torch.testing.assert_close(row, model.flat)
        assert not torch.equal(row, start)
        if exact:
            assert torch.equal(loss, alone) and torch.equal(row, model.flat)


@pytest.mark.parametrize(("hidden", "size"), [((9,), 1), ((9,), 20), ((31, 17), 3), ((100, 8), 5), ((32, 64), 10)])
def test_a_size_whose_bits_differ_anywhere_is_not_used(hidden: tuple[int, ...], size: int) -> None:
    model = Model(mlp(input_shape=(1, 8, 8), classes=10, hidden=hidden))
    rows, lots = rows_of(model, 4), torch.Generator().manual_seed(99)
    agrees, same = rows.agrees(size), True
    for _ in range(20):
        rows.flat.normal_(generator=lots).mul_(0.1)
        x = torch.randn(4, size, 1, 8, 8, generator=lots)
        y = torch.randint(0, 10, (4, size), generator=lots)
        before = rows.flat.clone()
        rows.descend(x, y, 0.1)
        for start, row, inputs, targets in zip(before, rows.flat, x, y, strict=True):
            model.flat.copy_(start)
            model.descend(inputs, targets, 0.1)
            same = same and torch.equal(model.flat, row)
    assert agrees == same


def test_a_trial_leaves_rows_and_model_as_they_were() -> None:
    model = Model(mlp(input_shape=(1, 8, 8), classes=10, hidden=HIDDEN))
    rows = rows_of(model, 3)
    rows.flat.normal_()
    before = rows.flat.clone(), model.flat.clone()
    rows.agrees(10)
    assert torch.equal(rows.flat, before[0]) and torch.equal(model.flat, before[1])


def rows_of(model: Model, count: int) -> BatchedPerceptron:
    rows = BatchedPerceptron.of(model.perceptron, count)
    assert rows is not None
    return rows


def device(work: Any, samples: int = 120, clients: int = 6, hidden: Sequence[int] = HIDDEN, **layers: Any) -> Device:
    class Even:
        def split(self, dataset: Any, clients: int, seed: int) -> Partition:
            return Partition.of(dataset, np.arange(len(dataset.x_train)) % clients, clients)

    world = SimulatedWorld(
        Synthetic(samples=samples, shape=(1, 8, 8)), Even(), lambda **k: mlp(hidden=hidden, **k), clients, 0
    )
    return Device(Method(Sync(), Full(), Mean(), work, Fixed(steps=3), **layers), world.model(), world, 0)


def jobs(steps: Sequence[int]) -> list[Job]:
    return [Job(n, n, 0, n, Budget(s), 0.0) for n, s in enumerate(steps)]


@pytest.mark.parametrize("batch", [5, 7, 20])
def test_updates_and_metrics_are_those_of_jobs_one_by_one(batch: int) -> None:
    d, tasks = device(Sgd(lr=0.1, batch=batch)), jobs([7] * 5)
    payload = d.method.space.begin(d.model)
    alone = [d.answer(job, payload, {}) for job in tasks]
    together = d.run_batch(tasks, [payload] * 5)
    sizes = {batch, 20 % batch or batch}
    assert (together is None) == (not all(rows_of(d.model, 5).agrees(n) for n in sizes))
    for a, b in zip(alone, together or alone, strict=True):
        assert torch.equal(a.delta.flat, b.delta.flat)
        assert (a.job, a.weight, a.metrics) == (b.job, b.weight, b.metrics)


@pytest.mark.parametrize(
    "why",
    [
        device(Sgd(lr=0.1, momentum=0.9)),
        device(Sgd(lr=0.1, weight_decay=0.1)),
        device(Sgd(lr=0.1, clip_norm=1.0)),
        device(FedProx(lr=0.1, mu=0.1)),
        device(Sgd(lr=0.1), hidden=(4000, 4000)),
        device(Sgd(lr=0.1), privacy=(Noise(rms=0.1),)),
    ],
    ids=["momentum", "decay", "clipping", "fedprox", "large model", "a layer that sends"],
)
def test_what_is_more_than_plain_steps_and_a_delta_is_for_one_by_one(why: Device) -> None:
    payload = why.method.space.begin(why.model)
    assert not why.can_batch and why.run_batch(jobs([2] * 6), [payload] * 6) is None


def test_unlike_jobs_go_in_groups_and_get_the_bits_they_get_alone() -> None:
    d = device(Sgd(lr=0.1, batch=10), samples=123)  # the first three clients have one sample more than the others
    payload, tasks = d.method.space.begin(d.model), jobs([3, 3, 3, 3, 3, 5])
    tasks[1] = replace(tasks[1], version=4)
    alone = [d.answer(job, payload, {}) for job in tasks]
    together = d.run_batch(tasks, [payload] * 6)
    for a, b in zip(alone, together or alone, strict=True):
        assert torch.equal(a.delta.flat, b.delta.flat)
        assert (a.job, a.weight, a.metrics) == (b.job, b.weight, b.metrics)
    assert together is not None or not all(rows_of(d.model, n).agrees(size) for n in (1, 2) for size in (1, 10))


def test_updates_lie_in_the_rooms_they_were_given_if_those_are_large_enough() -> None:
    d, tasks = device(Sgd(lr=0.1, batch=10)), jobs([4, 4])
    payload = d.method.space.begin(d.model)
    large, small = bytearray(1 << 20), bytearray(100)
    updates = d.run_batch(tasks, [payload] * 2, [memoryview(large), memoryview(small)])
    assert updates is not None
    alone = [d.answer(job, payload, {}) for job in tasks]
    for a, b in zip(alone, updates, strict=True):
        assert torch.equal(a.delta.flat, b.delta.flat) and bytes(wire_format.encode(b.delta)) == bytes(
            wire_format.encode(a.delta)
        )
    assert large.startswith(bytes(wire_format.encode(alone[0].delta))) and not any(small)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("told", [False, True])
def test_rows_that_begin_and_end_elsewhere_move_as_rows_in_place_do(parts: int, told: bool) -> None:
    model = Model(mlp(input_shape=(1, 8, 8), classes=10, hidden=HIDDEN))
    rows, lots = rows_of(model, 2), torch.Generator().manual_seed(3)
    starts = [torch.randn(len(model.flat), generator=lots) * 0.1 for _ in range(2)]
    own = [
        [(torch.randn(10, 1, 8, 8, generator=lots), torch.randint(10, (10,), generator=lots)) for _ in range(4)]
        for _ in range(2)
    ]
    rows.flat.copy_(torch.stack(starts))
    losses = rows.descend_all(own, 0.1)
    expected = rows.flat - torch.stack(starts)
    kept, deltas = [start.clone() for start in starts], list(torch.full((2, len(model.flat)), 7.0))
    rows.flat.fill_(float("nan"))
    rows.begin(starts, deltas)
    got = []
    for at in range(0, 4, 4 // parts):
        last = at + 4 // parts == 4 and told
        got.append(rows.descend_all([batches[at : at + 4 // parts] for batches in own], 0.1, last=last))
    rows.finish()
    assert torch.equal(torch.cat(got, 1), losses) and torch.equal(torch.stack(deltas), expected)
    assert all(torch.equal(a, b) for a, b in zip(starts, kept, strict=True)), "where rows begin is only read"


def test_diverging_clients_are_for_one_by_one() -> None:
    d = device(Sgd(lr=0.1))
    payload = d.method.space.begin(d.model)
    broken = d.method.space.begin(d.model)
    broken.flat.fill_(float("inf"))
    assert d.can_batch and d.run_batch(jobs([2, 2]), [payload, broken]) is None
