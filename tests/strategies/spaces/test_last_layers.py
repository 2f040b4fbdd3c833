"""Partial training: what is frozen stays and is not sent, what was trained is averaged over those who trained it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

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
from fedhet import wire
from fedhet.model import Model
from fedhet.tree import FlatTree, Schema
from fedhet.types import Budget, Job, Tree
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
        kept.append(wire.encode(state))
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
    combined = numbers(SPACE.combine(deltas, c))
    rows = [numbers(d) for d in deltas]
    for name in whole:
        there = [i for i, row in enumerate(rows) if name in row]
        if not there:
            assert name not in combined
            continue
        mean = sum(c[i] * rows[i][name] for i in there) / sum(c[i] for i in there)
        np.testing.assert_allclose(combined[name], sum(c) * mean, rtol=2e-5, atol=2e-6)


@given(
    st.lists(st.tuples(st.sampled_from(WIDTHS), st.floats(0.01, 2.0), st.floats(0.0, 1.0)), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_a_scale_is_never_divided_away(given: list[tuple[float, float, float]], seed: int) -> None:
    """x_p = (sum_i c_i) * sum_{i in S_p} c_i s_i d_ip / sum_{i in S_p} c_i, in float64."""
    whole, rng = network().schema, np.random.default_rng(seed)
    deltas = []
    for width, _, _ in given:
        own = trained(whole, width)
        deltas.append(FlatTree(own, torch.from_numpy(rng.normal(size=own.size)).float()))
    c, s = [x for _, x, _ in given], [x for _, _, x in given]
    combined, rows = numbers(SPACE.combine(deltas, c, s)), [numbers(d) for d in deltas]
    for name in combined:
        there = [i for i, row in enumerate(rows) if name in row]
        want = sum(c) * sum(c[i] * s[i] * rows[i][name] for i in there) / sum(c[i] for i in there)
        np.testing.assert_allclose(combined[name], want, rtol=2e-5, atol=2e-6)


def test_one_who_trains_a_layer_alone_is_cut_like_everybody() -> None:
    whole = network().schema
    long, short = (
        FlatTree(whole, torch.full((whole.size,), 100.0)),
        FlatTree(own := trained(whole, 0.01), torch.ones(own.size)),
    )
    answer = numbers(SPACE.combine([long, short], [0.5, 0.5], [0.01, 1.0]))
    assert {float(v) for name in whole for v in np.unique(answer[name].round(5))} == {1.0}


def test_coefficients_below_zero_have_no_meaning_where_layers_are_missing() -> None:
    whole = network().schema
    own = trained(whole, 0.01)
    deltas = [FlatTree(whole, torch.ones(whole.size)), FlatTree(own, torch.ones(own.size))]
    with pytest.raises(ValueError, match="negative coefficients"):
        SPACE.combine(deltas, [1.5, -0.5])
    assert numbers(SPACE.combine([deltas[0]] * 2, [1.5, -0.5]))


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
