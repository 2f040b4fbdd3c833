"""Gradient inversion: with real data in place of reconstructions the estimate is the real fresh update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.models.vision import lenet, mlp
from clients.work.fedprox import FedProx
from clients.work.sgd import Sgd
from fedhet.engine.method import Method, Misfit
from fedhet.model.flat_model import Model
from fedhet.numerics.rng import stream
from fedhet.numerics.tree import FlatTree, Schema
from fedhet.testing.quadratic import FakeView, QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Memory, Tree, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full
from strategies.staleness.inversion import Inversion
from strategies.staleness.inversion_local import Procedure
from strategies.staleness.inversion_store import Entry, Store
from strategies.staleness.inversion_switch import Switch
from strategies.staleness.inversion_unique import Unique

SGD = {"_target_": "clients.work.sgd.Sgd", "lr": 0.1, "batch": 6, "momentum": 0.0, "clip_norm": None}
SGD |= {"weight_decay": 0.0, "lr_decay": 0.9}
STEPS, SAMPLES, CLASSES, SHAPE = 3, 6, 4, (1, 16, 16)
SURE = 1000.0
"""A logit that makes a label certain to the bit."""


class InOrder:
    """Data whose batches come in storage order."""

    def __init__(self, seed: int = 0, samples: int = SAMPLES) -> None:
        rng = np.random.default_rng(seed)
        self.x = torch.from_numpy(rng.normal(size=(samples, *SHAPE))).float()
        self.y = torch.from_numpy(rng.integers(0, CLASSES, samples))

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from zip(torch.split(self.x, size), torch.split(self.y, size), strict=True)

    def all_samples(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def rng(self, purpose: str) -> np.random.Generator:
        return stream(0, purpose)

    @property
    def logits(self) -> Tensor:
        return SURE * torch.nn.functional.one_hot(self.y, CLASSES).float()


class Stand:
    """A server two versions on from the base of one late client, all on LeNet or a perceptron."""

    def __init__(self, factory: Any = lenet, work: Any = None, **options: Any) -> None:
        torch.manual_seed(1)
        self.factory, self.work = factory, work or Sgd(lr=0.1, batch=SAMPLES, lr_decay=0.9)
        self.model = Model(factory(input_shape=SHAPE, classes=CLASSES))
        roster = equal_clients(QuadraticWorld([1.0] * 9, np.zeros(9), [SAMPLES] * 9))
        states = []
        for k in range(3):
            noise = torch.from_numpy(np.random.default_rng(k).normal(size=self.model.flat.numel())).float()
            states.append(FlatTree(self.model.schema, self.model.flat + 0.02 * k * noise))
        self.view = FakeView(roster, Full(), states[2], 2, bases=dict(enumerate(states)))
        asked: dict[str, Any] = {"images": 5, "iterations": 4, "warm_iterations": 1, "accept": 1e9}
        self.layer = Inversion(factory, Procedure(SGD), SHAPE, CLASSES, **{**asked, **options})

    def update(self, version: int, data: InOrder | None = None, client: int = 3) -> Update:
        data = data or InOrder()
        job = Job(10 * version + client, client, version, 0, Budget(STEPS), 0.0)
        base = self.view.base(version)
        assert isinstance(base, FlatTree)
        self.model.flat.copy_(base.flat)
        self.work.run(self.model, data, job, {})
        return Update(job, FlatTree(base.schema, self.model.flat - base.flat), float(len(data)))


def oracle(update: Update, data: InOrder) -> Memory:
    """A memory in which the client's own data were found earlier."""
    memory: Memory = {}
    Store().write(update.job.client, Entry(data.x, data.logits, flat(update.delta)), memory)
    return memory


def flat(tree: Tree) -> Tensor:
    assert isinstance(tree, FlatTree)
    return tree.flat


PROX = {**SGD, "_target_": "clients.work.fedprox.FedProx", "mu": 0.3, "weight_decay": 0.01}


@pytest.mark.parametrize("factory", [lenet, partial(mlp, hidden=[9])])
@pytest.mark.parametrize("batch", [SAMPLES, 2])
def test_with_the_clients_own_data_the_estimate_is_the_fresh_update_to_the_bit(factory: Any, batch: int) -> None:
    stand = Stand(factory, Sgd(lr=0.1, batch=batch, lr_decay=0.9))
    layer = replace(stand.layer, procedure=Procedure({**SGD, "batch": batch}), switch=Switch(checks=0))
    data = InOrder()
    late, fresh = stand.update(0, data), stand.update(2, data)
    came = layer.arrive(late, stand.view, oracle(late, data))
    assert torch.equal(flat(came.delta), flat(fresh.delta))
    assert (came.weight, came.scale, came.job) == (late.weight, late.scale, late.job)
    assert not torch.equal(flat(came.delta), flat(late.delta))


def test_a_proximal_pull_and_weight_decay_are_part_of_the_path() -> None:
    stand = Stand(work=FedProx(lr=0.1, batch=SAMPLES, lr_decay=0.9, mu=0.3, weight_decay=0.01))
    layer, data = replace(stand.layer, procedure=Procedure(PROX), switch=Switch(checks=0)), InOrder()
    late = stand.update(0, data)
    came = layer.arrive(late, stand.view, oracle(late, data))
    assert torch.equal(flat(came.delta), flat(stand.update(2, data).delta))


def test_without_staleness_the_estimate_from_the_clients_own_data_is_what_was_received() -> None:
    stand, data = Stand(), InOrder()
    update = stand.update(2, data)
    solver = stand.layer._solver
    path = solver.path(STEPS, 2, SAMPLES, SAMPLES)
    assert torch.equal(solver.estimate(flat(stand.view.state), data.x, data.logits, path), flat(update.delta))


def test_a_fresh_update_is_left_alone_and_a_device_sends_what_it_always_sent() -> None:
    stand = Stand()
    update = stand.update(2)
    assert stand.layer.arrive(update, stand.view, {}) is update
    assert stand.layer.send(update, {}) is update
    assert stand.layer.wire(Schema.of(update.delta)) == Schema.of(update.delta)


def test_found_data_explain_the_update_better_the_longer_the_search() -> None:
    missed = []
    for iterations in (1, 60):
        stand = Stand(iterations=iterations, images=6)
        stand.layer.arrive(stand.update(0), stand.view, {})
        ((kind, told),) = stand.view.notes
        assert kind == "inversion" and told["client"] == 3 and told["late"] == 2 and told["iterations"] == iterations
        missed.append(float(told["miss"]))
    assert missed[1] < 0.7 * missed[0]


def test_the_second_inversion_of_a_client_starts_where_the_first_ended() -> None:
    stand = Stand(iterations=25, warm_iterations=1, switch=Switch(checks=0))
    memory: Memory = {}
    first = stand.layer.arrive(stand.update(0), stand.view, memory)
    again = stand.layer.arrive(stand.update(0), stand.view, memory)
    miss = [float(told["miss"]) for kind, told in stand.view.notes if kind == "inversion"]
    assert miss[1] <= miss[0] and torch.equal(flat(first.delta), flat(again.delta))


def test_the_estimate_and_the_late_update_are_held_against_the_truth() -> None:
    stand, data = Stand(switch=Switch(checks=1, window=0.0)), InOrder()
    late, truth = stand.update(0, data), stand.update(1, data)
    memory = oracle(late, data)
    stand.layer.arrive(truth, stand.view, memory)
    told = dict(stand.view.notes)["inversion judged"]
    assert told["estimate_error"] == 0.0 < float(told["late_error"]) and "switched" not in memory
    other = oracle(truth, InOrder(seed=5))
    came = stand.layer.arrive(truth, stand.view, other)
    assert int(other["switched"]) == 2 and came is truth
    assert ("inversion ends", {"version": 2}) in stand.view.notes


def test_after_the_window_late_updates_are_combined_as_they_are() -> None:
    stand = Stand()
    late = stand.update(0)
    memory = {"switched": torch.tensor(1)}
    assert stand.layer.arrive(late, stand.view, memory) is late
    discounted = replace(stand.layer, discount_after=1.0).arrive(late, stand.view, memory)
    assert discounted.delta is late.delta and discounted.scale == pytest.approx(1 / 3)


def test_inside_the_window_estimate_and_late_update_are_blended() -> None:
    stand, data = Stand(switch=Switch(window=4.0)), InOrder()
    late, fresh = stand.update(0, data), stand.update(2, data)
    memory = {**oracle(late, data), "switched": torch.tensor(1)}
    share = stand.layer.switch.share(2, memory)
    assert share == 0.75
    came = stand.layer.arrive(late, stand.view, memory)
    torch.testing.assert_close(flat(came.delta), share * flat(fresh.delta) + (1 - share) * flat(late.delta))


def test_what_a_fresh_client_sent_too_is_not_inverted() -> None:
    stand, memory = Stand(unique=Unique(3)), Memory()
    fresh = [stand.update(2, InOrder(seed), client) for seed, client in enumerate((5, 6, 7))]
    for update in fresh:
        stand.layer.arrive(update, stand.view, memory)
    late = replace(fresh[0], job=replace(fresh[0].job, version=0))
    came = stand.layer.arrive(late, stand.view, memory)
    assert came.delta is late.delta and came.scale == pytest.approx(3**-0.5) and not stand.view.notes


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"procedure": Procedure({**SGD, "momentum": 0.5})}, "momentum"),
        ({"procedure": Procedure({"_target_": "clients.work.adam.Adam"})}, "Adam"),
        ({"input_shape": (1, 20, 20)}, "input_shape"),
    ],
)
def test_what_cannot_be_unrolled_is_discounted_and_the_record_says_why_once(options: Any, word: str) -> None:
    stand = Stand()
    layer, memory, late = replace(stand.layer, **options), Memory(), stand.update(0)
    for _ in range(2):
        came = layer.arrive(late, stand.view, memory)
        assert came.delta is late.delta and came.scale == pytest.approx(3**-0.5)
    ((kind, told),) = stand.view.notes
    assert kind == "no inversion" and word in str(told["why"])


def test_an_explanation_that_misses_too_much_is_not_used() -> None:
    stand = Stand(accept=0.0)
    late = stand.update(0)
    came = stand.layer.arrive(late, stand.view, {})
    assert came.delta is late.delta and came.scale == pytest.approx(3**-0.5)


def test_memory_is_bounded_by_the_clients_that_are_kept_and_the_peers() -> None:
    stand = Stand(store=Store(2), unique=Unique(0))
    memory: Memory = {}
    for client in (1, 2, 3, 4):
        stand.layer.arrive(stand.update(0, client=client), stand.view, memory)
    assert memory["order"].tolist() == [3, 4]
    assert sorted(memory) == ["late/3", "late/4", "order", "x/3", "x/4", "z/3", "z/4"]


def test_memory_holds_copies_of_what_the_server_may_use_again() -> None:
    stand, memory = Stand(), Memory()
    late, fresh = stand.update(0), stand.update(2)
    stand.layer.arrive(fresh, stand.view, memory)
    stand.layer.arrive(late, stand.view, memory)
    for update, kept in ((late, memory["late/3"]), (fresh, memory["peer/0"])):
        assert torch.equal(flat(update.delta), kept)
        flat(update.delta).zero_()
        assert kept.any()


def test_seconds_bound_the_iterations_of_one_update() -> None:
    stand = Stand(seconds_per_iteration=0.5, seconds=1.0)
    task = stand.layer.task(stand.update(0), stand.view, {})
    assert task is not None and task["numbers"].tolist() == [STEPS, 0, SAMPLES, 2]
    asked = stand.layer.prepare(stand.update(0), stand.view, {})
    assert asked is not None and asked[1] == 1.0


def test_it_is_no_method_with_a_part_that_hides_single_updates() -> None:
    class Sum(Inversion):
        hides = frozenset({"each"})
        needs = frozenset()

    layer = Stand().layer
    hiding = Sum(layer.model, layer.procedure)
    with pytest.raises(Misfit, match=r"Inversion needs \['each'\].*: Sum hides \['each'\]"):
        Method(Sync(), Full(), Mean(), Sgd(), Fixed(1), staleness=(layer,), privacy=(hiding,))


@pytest.mark.parametrize(
    "options",
    [
        {"images": 0}, {"iterations": 0}, {"warm_iterations": 0}, {"stale": 0}, {"share": 0.0}, {"loss": "l3"},
        {"accept": -1.0}, {"discount": -0.5},
        {"seconds": 0.1, "seconds_per_iteration": 0.2}, {"seconds_per_iteration": -1.0},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Inversion(lenet, Procedure(SGD), SHAPE, CLASSES, **options)
