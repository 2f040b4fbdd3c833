"""The full model as one vector, without aliasing or loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhet.model.flat_model import Model
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.types import Budget, Job
from strategies.spaces.full import Full

JOB = Job(0, 0, 0, 0, Budget(), 0.0)


def model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def test_the_first_state_is_the_model_and_not_its_buffer() -> None:
    m = model()
    state = Full().begin(m)
    assert torch.equal(state.flat, m.flat)
    m.flat.add_(1.0)
    assert not torch.equal(state.flat, m.flat)
    assert list(state) == [n for n, _ in m.module.named_parameters()] + ["1.running_mean", "1.running_var"]


def test_installing_copies_so_that_training_leaves_the_payload_alone() -> None:
    device, space = model(1), Full()
    payload = space.begin(model(0))
    kept = payload.flat.clone()
    space.install(device, payload, JOB)
    assert torch.equal(device.flat, kept)
    device.flat.mul_(2.0)
    assert torch.equal(payload.flat, kept)
    delta = space.extract(device, payload)
    device.flat.zero_()
    torch.testing.assert_close(delta.flat, kept)
    assert delta.schema == payload.schema == space.expects(payload, JOB)


def test_batch_norm_statistics_make_the_round_trip() -> None:
    server, device, space = model(0), model(1), Full()
    state = space.begin(server)
    space.install(device, space.offer(state, JOB), JOB)
    device.module.train()
    device.module(torch.randn(16, 3) + 5)
    state = space.merge(state, space.extract(device, state))
    space.restore(server, state)
    torch.testing.assert_close(server.module[1].running_mean, device.module[1].running_mean)
    torch.testing.assert_close(server.module[1].running_var, device.module[1].running_var)
    assert server.module[1].running_mean.abs().max() > 0.1
    x = torch.randn(5, 3)
    torch.testing.assert_close(server.predict(x), device.predict(x))


def test_merging_leaves_the_old_state_and_everybody_gets_the_state_itself() -> None:
    space = Full()
    state = space.begin(model())
    kept = state.flat.clone()
    delta = FlatTree(state.schema, torch.ones_like(state.flat))
    assert torch.equal(space.merge(state, delta).flat, kept + 1)
    assert torch.equal(state.flat, kept)
    assert space.offer(state, JOB) is state


def test_a_payload_of_another_model_is_refused() -> None:
    space, m = Full(), model()
    other = Schema((("strange", Leaf((m.flat.numel(),))),))
    with pytest.raises(ValueError, match=r"unknown \['strange'\], missing \['0.bias'"):
        space.install(m, FlatTree(other, m.flat.clone()), JOB)
    leaves = m.schema.leaves
    with pytest.raises(ValueError, match="order"):
        space.install(m, FlatTree(Schema((leaves[1], leaves[0], *leaves[2:])), m.flat.clone()), JOB)
    with pytest.raises(ValueError, match="flat"):
        space.extract(m, dict(m.tree().items()))
