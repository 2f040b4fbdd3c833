"""A model with control variates: two parts with different aggregation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from clients.work.scaffold import Scaffold
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method, Misfit
from fedhet.engine.server import Server
from fedhet.engine.stopping import Limits
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Schema
from fedhet.protocols import Transform
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Memory
from strategies.budgets.fixed import Fixed
from strategies.optimizers.fedopt import Adam
from strategies.optimizers.sgd import Momentum, Sgd
from strategies.rules.krum import Krum
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full

JOB = Job(0, 0, 0, 0, Budget(), 0.0)


def model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def random_delta(state: FlatTree, seed: int) -> FlatTree:
    return FlatTree(state.schema, torch.from_numpy(np.random.default_rng(seed).normal(size=len(state.flat))).float())


def test_the_first_state_has_a_zero_control_per_parameter_and_none_for_statistics() -> None:
    m = model()
    state = ControlVariates(5).begin(m)
    parameters = [n for n, _ in m.module.named_parameters()]
    assert [n for n in state if n.startswith("control.")] == ["control." + n for n in parameters]
    assert all(not state["control." + n].any() and state["control." + n].shape == state[n].shape for n in parameters)
    assert torch.equal(state.flat[: m.flat.numel()], m.flat)


def test_a_device_gets_copies_of_both_halves_and_answers_with_both_steps() -> None:
    space, device = ControlVariates(5), model(1)
    payload = random_delta(space.begin(device), 0)
    kept = payload.flat.clone()
    space.install(device, payload, JOB)
    assert torch.equal(device.extras["control"], kept[device.flat.numel() :])
    device.extras["control"].zero_()
    device.flat.add_(0.5)
    assert torch.equal(payload.flat, kept)
    device.extras["control_step"] = torch.arange(device.params.numel(), dtype=torch.float32)
    delta = space.extract(device, payload)
    assert delta.schema == space.expects(payload, JOB)
    torch.testing.assert_close(delta.flat[: device.flat.numel()], torch.full_like(device.flat, 0.5))
    assert torch.equal(delta.flat[device.flat.numel() :], device.extras["control_step"])


def test_the_model_part_combines_by_coefficients_and_the_control_part_by_all_clients() -> None:
    space, m = ControlVariates(8), model()
    deltas = [random_delta(space.begin(m), seed) for seed in range(3)]
    combined = space.combine(deltas, [0.7, 0.2, -0.1])
    rows, size = np.stack([d.flat.numpy() for d in deltas]).astype(np.float64), m.flat.numel()
    np.testing.assert_allclose(combined.flat[:size].numpy(), [0.7, 0.2, -0.1] @ rows[:, :size], atol=1e-6)
    np.testing.assert_allclose(combined.flat[size:].numpy(), rows[:, size:].sum(0) / 8, atol=1e-6)
    assert combined.schema == deltas[0].schema


def test_plain_mappings_combine_to_the_same_bits() -> None:
    space, m = ControlVariates(8), model()
    deltas = [random_delta(space.begin(m), seed) for seed in range(3)]
    flat = space.combine(deltas, [0.5, 0.25, 0.25])
    plain = space.combine([dict(d.items()) for d in deltas], [0.5, 0.25, 0.25])
    assert torch.equal(flat.flat, plain.flat)


def test_inner_products_are_those_of_the_models_alone() -> None:
    space, m = ControlVariates(2), model()
    deltas = [random_delta(space.begin(m), seed) for seed in range(3)]
    rows = np.stack([d.flat[: m.flat.numel()].numpy() for d in deltas]).astype(np.float64)
    np.testing.assert_allclose(space.gram(deltas), rows @ rows.T, rtol=1e-12)


def test_restoring_puts_back_the_model() -> None:
    space, m = ControlVariates(2), model(1)
    state = space.begin(model(0))
    space.restore(m, state)
    assert torch.equal(m.flat, model(0).flat)


def test_misuse_says_what_is_missing() -> None:
    space, m = ControlVariates(2), model()
    payload = space.begin(m)
    space.install(m, payload, JOB)
    with pytest.raises(ValueError, match="work=scaffold"):
        space.extract(m, payload)
    with pytest.raises(ValueError, match="control variates"):
        space.install(m, Full().begin(m), JOB)
    with pytest.raises(ValueError, match="clients=0"):
        ControlVariates(0)


def test_a_combined_delta_comes_apart_into_the_models_step_and_the_controls_and_together_again() -> None:
    space, m = ControlVariates(8), model()
    delta = random_delta(space.begin(m), 0)
    step, beside = space.split_optimized(delta)
    assert list(step) == list(m.schema)
    assert all(name.startswith("control.") for name in beside)
    again = tree.join(tree.scale(step, 3.0), beside)
    assert again.schema == delta.schema
    assert torch.equal(again.flat[: m.flat.numel()], delta.flat[: m.flat.numel()] * 3.0)
    assert torch.equal(again.flat[m.flat.numel() :], delta.flat[m.flat.numel() :])


@pytest.mark.parametrize("optimizer", [Sgd(0.3), Momentum(0.5, 0.9), Adam()])
def test_a_server_optimizer_leaves_the_control_variate_the_mean_of_the_clients(optimizer: Transform) -> None:
    world = QuadraticWorld([1.0, 2.0, 0.5, 1.5, 1.0], np.random.default_rng(1).normal(size=(5, 4)))
    method = Method(Sync(), ControlVariates(5), Mean(), Scaffold(lr=0.05), Fixed(steps=3), optimizer=(optimizer,))
    start, fleet = world.model(), equal_clients(world)
    server = Server(method, method.space.begin(start), fleet, Limits(versions=6), 0, lambda t, n, f: None)
    device, memories = Device(method, world.model(), world, 0), [dict[str, Memory]() for _ in range(5)]
    server.start()
    sends = server.settle(0.0)
    now = 0.0
    while sends:
        now += 1.0
        for send in sends:
            server.arrived(device.answer(send.job, send.payload, memories[send.job.client]), now)
        sends = server.settle(now)
    assert server.version == 6
    own = [memory["work"]["control"] for memory in memories]
    assert torch.stack(own).abs().max() > 0
    size = start.flat.numel()
    torch.testing.assert_close(server.state.flat[size:], torch.stack(own).mean(0), rtol=1e-4, atol=1e-6)


def test_a_cut_of_the_norm_also_holds_for_the_control_step() -> None:
    space, m = ControlVariates(4), model()
    schema = Schema.of(space.begin(m))
    deltas = [FlatTree(schema, torch.full((schema.size,), value)) for value in (1000.0, 1.0)]
    combined = space.combine(deltas, [0.5, 0.5], [0.001, 1.0])
    control = [leaf for name, leaf in combined.items() if name.startswith("control.")]
    assert all(leaf.eq(0.5).all() for leaf in control), "(0.001 * 1000 + 1) / 4"


def test_a_rule_that_protects_is_a_misfit_because_control_steps_go_past_it() -> None:
    with pytest.raises(Misfit, match=r"ControlVariates needs \['mean'\].*goes past the rule"):
        Method(Sync(), ControlVariates(5), Krum(f=1), Scaffold(lr=0.05), Fixed(steps=3))
