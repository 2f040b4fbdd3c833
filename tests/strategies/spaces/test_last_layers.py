"""Partial training: frozen layers are not sent, trained ones are averaged over the clients that trained them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clients.data.shard import ClientShard
from clients.work.adam import Adam
from clients.work.fedprox import FedProx
from clients.work.sgd import Sgd
from fedhet.engine.method import Method, Misfit
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.numerics.tree import FlatTree, Schema
from fedhet.population.roster import Clients
from fedhet.protocols import Rule
from fedhet.testing.quadratic import FakeView
from fedhet.types import Budget, Job, Tree, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.arc import Arc
from strategies.rules.bucketing import Bucketing
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.fednova import FedNova
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum
from strategies.rules.mean import Mean
from strategies.rules.nnm import Nnm
from strategies.rules.unit_mean import UnitMean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full
from strategies.spaces.last_layers import LastLayers, layers, trained

SPACE = LastLayers()
WIDTHS = (1.0, 0.76, 0.5, 0.3, 0.01)
WORKS = [Sgd(lr=0.1, momentum=0.9, weight_decay=0.1), Adam(lr=0.01, weight_decay=0.1), FedProx(lr=0.1, mu=0.5)]


def network() -> Model:
    """Four layers: two linear ones, a normalisation, a linear one."""
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))


def perceptron() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))


def shard(client: int) -> ClientShard:
    rng = np.random.default_rng(client)
    x, y = torch.from_numpy(rng.normal(size=(40, 5))).float(), torch.from_numpy(rng.integers(0, 3, 40))
    return ClientShard(x, y, np.arange(40), 0, client, 0)


def job(width: float, client: int = 0) -> Job:
    return Job(client, client, 0, 0, Budget(5, width=width), 0.0)


def numbers(tree: Tree) -> dict[str, np.ndarray]:
    return {name: leaf.double().numpy().copy() for name, leaf in tree.items()}


@pytest.mark.parametrize("make", [network, perceptron])
@pytest.mark.parametrize("work", WORKS, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("width", WIDTHS)
def test_frozen_leaves_are_untouched_and_not_sent(make: type, work: Sgd, width: float) -> None:
    device: Model = make()
    state = SPACE.begin(device)
    work.run(device, shard(3), job(1.0), {})  # another job was here before
    asked = job(width)
    SPACE.install(device, SPACE.offer(state, asked), asked)
    work.run(device, shard(0), asked, {})
    delta = SPACE.extract(device, state)
    expected = layers(state.schema)[-max(1, int(width * len(layers(state.schema)))) :]
    assert {name.rpartition(".")[0] for name in delta} == set(expected)
    assert Schema.of(delta) == SPACE.expects(state, asked)
    assert all(bool(leaf.any()) for leaf in delta.values()), "everything sent was trained"
    after = dict(device.tree().items())
    for name, _ in device.module.named_parameters():
        if name not in delta:
            assert torch.equal(after[name], state[name]), f"{name} is frozen and moved"


@pytest.mark.parametrize("make", [network, perceptron])
@pytest.mark.parametrize("work", WORKS, ids=lambda w: type(w).__name__)
def test_at_width_one_every_bit_is_the_full_spaces(make: type, work: Sgd) -> None:
    kept: list[bytes] = []
    for space in (SPACE, Full()):
        device: Model = make()
        if space is SPACE:  # a narrow job before leaves nothing behind
            SPACE.install(device, SPACE.begin(device), job(0.01))
            work.run(device, shard(9), job(0.01), {})
            device = _as_new(device, make())
        state = space.begin(make())
        for _ in range(3):
            deltas = []
            for client in range(3):
                space.install(device, space.offer(state, job(1.0, client)), job(1.0, client))
                work.run(device, shard(client), job(1.0, client), {})
                deltas.append(space.extract(device, state))
            state = space.merge(state, space.combine(deltas, [0.5, 0.3, 0.2]))
        kept.append(wire_format.encode(state))
    assert kept[0] == kept[1]


def _as_new(device: Model, fresh: Model) -> Model:
    """The used device with the module state of a fresh one, counters of batches included."""
    device.module.load_state_dict(fresh.module.state_dict())
    return device


@given(st.lists(st.tuples(st.sampled_from(WIDTHS), st.floats(0.01, 2.0)), min_size=1, max_size=5), st.integers(0, 99))
def test_every_parameter_is_averaged_over_those_who_trained_it(given: list[tuple[float, float]], seed: int) -> None:
    whole = network().schema
    rng = np.random.default_rng(seed)
    deltas = []
    for width, _ in given:
        own = trained(whole, width)
        deltas.append(FlatTree(own, torch.from_numpy(rng.normal(size=own.size)).float()))
    c = [x for _, x in given]
    scales = rng.uniform(0.01, 3.0, len(c))
    combined = numbers(SPACE.combine(deltas, c, scales.tolist()))
    rows = [numbers(d) for d in deltas]
    for name in whole:
        there = [i for i, row in enumerate(rows) if name in row]
        if not there:
            assert name not in combined
            continue
        mean = sum(c[i] * scales[i] * rows[i][name] for i in there) / sum(c[i] for i in there)
        np.testing.assert_allclose(combined[name], sum(c) * mean, rtol=2e-5, atol=2e-6)


def test_merging_moves_what_was_trained_and_nothing_else() -> None:
    state = SPACE.begin(network())
    own = trained(state.schema, 0.5)
    merged = SPACE.merge(state, FlatTree(own, torch.ones(own.size)))
    assert Schema.of(merged) == state.schema
    for name, leaf in merged.items():
        assert torch.equal(leaf, state[name] + 1 if name in own else state[name])


def test_inner_products_take_what_was_not_trained_as_unmoved() -> None:
    whole = network().schema
    rng = np.random.default_rng(0)
    deltas, dense = [], []
    for width in WIDTHS:
        own = trained(whole, width)
        deltas.append(FlatTree(own, torch.from_numpy(rng.normal(size=own.size)).float()))
        rows = numbers(deltas[-1])
        dense.append(np.concatenate([rows.get(n, np.zeros(leaf.shape)).ravel() for n, leaf in whole.items()]))
    np.testing.assert_allclose(SPACE.gram(deltas), np.stack(dense) @ np.stack(dense).T, rtol=1e-6)


@given(st.floats(0.001, 1.0))
def test_a_narrower_job_trains_part_of_what_a_wider_one_trains(width: float) -> None:
    whole = network().schema
    shares = sorted({width, *WIDTHS})
    sets = [set(trained(whole, w)) for w in shares]
    assert all(a <= b for a, b in itertools.pairwise(sets)) and sets[-1] == set(whole)


def test_a_width_outside_its_range_and_another_models_payload_are_refused() -> None:
    for width in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="width="):
            SPACE.expects(network().tree(), replace(job(1.0), budget=Budget(1, width=width)))
    with pytest.raises(ValueError, match="not this model's"):
        SPACE.install(network(), perceptron().tree(), job(1.0))


def test_last_layers_without_parameters_are_refused_by_name() -> None:
    model = Model(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)))
    with pytest.raises(ValueError, match="trains no parameter"):
        SPACE.install(model, SPACE.begin(model), job(0.5))


def test_the_backward_pass_stops_at_the_frozen_layers() -> None:
    device = network()
    SPACE.install(device, SPACE.begin(device), job(0.3))
    seen: Sequence[bool] = [p.requires_grad for p in device.module.parameters()]
    assert seen == [False] * 6 + [True] * 2
    SPACE.install(device, SPACE.begin(device), job(1.0))
    assert all(p.requires_grad for p in device.module.parameters())
    assert device.params.numel() == sum(p.numel() for p in device.module.parameters()) == device.grad.numel()


class View:
    """Two clients of which the second never trains the first layer."""

    roster: Sequence[int] = (0, 1)
    fednova_norm = staticmethod(lambda job: float(job.budget.steps))


ALONE = {"0.weight": torch.full((2,), 100.0), "1.weight": torch.full((2,), 100.0)}
NARROW = {"1.weight": torch.ones(2)}


def combined(rule: Rule, scale: float = 1.0, steps: Sequence[int] = (5, 5)) -> dict[str, list[float]]:
    updates = [
        Update(Job(0, 0, 0, 0, Budget(steps[0]), 0.0), ALONE, 1.0, scale),
        Update(Job(1, 1, 0, 0, Budget(steps[1]), 0.0), NARROW, 1.0),
    ]
    view: Any = View()
    return {name: leaf.tolist() for name, leaf in rule(updates, SPACE, view).items()}


def test_a_cut_or_discount_of_one_who_trains_a_layer_alone_is_not_divided_away() -> None:
    cut = combined(Mean(), scale=0.01)
    assert cut["0.weight"] == pytest.approx([1.0, 1.0]) and cut["1.weight"] == pytest.approx([1.0, 1.0])
    alone = combined(Mean(over="count"), scale=0.0)
    assert alone["0.weight"] == [0.0, 0.0] and alone["1.weight"] == [0.5, 0.5]


@pytest.mark.parametrize("chain", [Chain([Clipping(2.0)], Mean()), Chain([Bucketing(1), Clipping(2.0)], Mean())])
def test_a_cut_by_the_rule_itself_is_not_either(chain: Chain) -> None:
    """The whole update is 200 long and 100 in each of two coordinates of a layer: cut to 2, it is 1 in each."""
    view: Any = FakeView(Clients.from_columns(2, {"sec_per_step": 1.0}), SPACE)
    updates = [Update(Job(i, i, 0, 0, Budget(5), 0.0), d, 1.0) for i, d in enumerate((ALONE, NARROW))]
    cut = {name: leaf.tolist() for name, leaf in chain(updates, SPACE, view).items()}
    assert cut["0.weight"] == pytest.approx([1.0, 1.0]) and cut["1.weight"] == pytest.approx([1.0, 1.0])


def test_norms_of_normalised_averaging_hold_for_one_who_trains_a_layer_alone() -> None:
    """t_eff = 12.5 over 20 and over 5 steps: lengths of the updates, not shares."""
    got = combined(FedNova(), steps=(20, 5))
    assert got["0.weight"] == pytest.approx([62.5, 62.5])
    assert got["1.weight"] == pytest.approx([(62.5 + 2.5) / 2] * 2)


def test_means_with_signs_are_refused_where_updates_cover_a_part() -> None:
    with pytest.raises(ValueError, match="coefficients"):
        SPACE.combine([ALONE, NARROW], [1.0, -0.5])


@pytest.mark.parametrize("rule", [Krum(f=1), GeometricMedian(), UnitMean(), Chain([Nnm(1)], Mean())])
def test_rules_that_compare_updates_are_a_misfit(rule: Rule) -> None:
    with pytest.raises(Misfit, match=r"distances.*the narrowest would be chosen"):
        Method(Sync(), SPACE, rule, Sgd(), Fixed(steps=1))
    assert Method(Sync(), Full(), rule, Sgd(), Fixed(steps=1)).rule is rule


@pytest.mark.parametrize("rule", [Mean(), FedNova(), Chain([Clipping(1.0)], Mean()), Chain([Arc(1)], Mean())])
def test_rules_that_look_at_one_update_at_a_time_fit(rule: Rule) -> None:
    assert Method(Sync(), SPACE, rule, Sgd(), Fixed(steps=1)).rule is rule
