"""Local SGD equals torch's optimizer, and reports its FedNova norm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.work.sgd import Sgd
from fedhet.testing.quadratic import QuadraticWorld
from fedhet.types import Budget, Job

Make = Callable[..., Any]


def by_torch(world: Any, steps: int, batch: int, clip: float | None = None, **options: Any) -> tuple[Any, float]:
    """The module after so many steps of torch.optim.SGD on client 1, and its mean loss."""
    net, batches, losses = world.module(), world.shard(1, 0).batches(batch), []
    optimiser = torch.optim.SGD(net.parameters(), **options)
    for _ in range(steps):
        x, y = next(batches)
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimiser.step()
        losses.append(loss.item())
    return net, sum(losses) / steps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.05},
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.05},
    ],
)
def test_steps_equal_those_of_torch(options: dict[str, Any], net_world: Make, a_job: Make) -> None:
    world = net_world()
    model = world.model()
    metrics = Sgd(lr=0.2, batch=10, **options).run(model, world.shard(1, 0), a_job(9), {})
    net, loss = by_torch(world, 9, 10, lr=0.2, **options)
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(model.params, expected, rtol=0, atol=1e-12)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-12)
    assert metrics["steps"] == 9


def test_clipping_equals_that_of_torch_and_bites(net_world: Make, a_job: Make) -> None:
    world = net_world()
    model, free = world.model(), world.model()
    Sgd(lr=0.2, batch=10, clip_norm=0.3).run(model, world.shard(1, 0), a_job(5), {})
    Sgd(lr=0.2, batch=10).run(free, world.shard(1, 0), a_job(5), {})
    net, _ = by_torch(world, 5, 10, clip=0.3, lr=0.2)
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(model.params, expected, rtol=0, atol=1e-6)  # torch divides by norm + 1e-6
    assert (free.params - expected).abs().max() > 1e-2


def test_momentum_starts_from_zero_in_every_job(net_world: Make, a_job: Make) -> None:
    world, work = net_world(), Sgd(lr=0.1, batch=8, momentum=0.9)
    first, second, memory = world.model(), world.model(), {}
    work.run(first, world.shard(0, 0), a_job(4), memory)
    work.run(second, world.shard(0, 0), a_job(4), memory)
    assert torch.equal(first.flat, second.flat)
    assert memory == {}


def test_batch_norm_trains_and_its_statistics_move(net_world: Make, a_job: Make) -> None:
    world = net_world(norm=True)
    model = world.model()
    model.module.eval()
    before = model.tree()["1.running_mean"].clone()
    Sgd(lr=0.1, batch=8).run(model, world.shard(1, 0), a_job(3), {})
    assert model.module.training
    assert not torch.equal(model.tree()["1.running_mean"], before)
    net, _ = by_torch(world, 3, 8, lr=0.1)
    torch.testing.assert_close(model.tree()["1.running_mean"], net[1].running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.tree()["1.running_var"], net[1].running_var, rtol=0, atol=1e-12)


def test_step_size_shrinks_with_the_version(a_job: Make) -> None:
    world = QuadraticWorld([1.0], [1.0])
    ends = []
    for version in (0, 1, 2):
        model = world.model()
        Sgd(lr=0.5, lr_decay=0.5).run(model, world.shard(0, 0), a_job(1, version), {})
        ends.append(float(model.params))
    assert ends == [0.5, 0.25, 0.125]


@given(momentum=st.floats(0, 0.95), nesterov=st.booleans(), steps=st.integers(1, 12))
@settings(max_examples=settings.default.max_examples // 2)
def test_a_norm_is_the_path_on_a_constant_gradient(momentum: float, nesterov: bool, steps: int) -> None:
    # With curvature c -> 0 and optimum 1/c the gradient at 0 is -1 and hardly changes.
    curvature = 1e-9
    world = QuadraticWorld([curvature], [1 / curvature])
    model = world.model()
    work = Sgd(lr=0.1, momentum=momentum, nesterov=nesterov and momentum > 0)
    metrics = work.run(model, world.shard(0, 0), Job(0, 0, 0, 0, Budget(steps), 0.0), {})
    assert float(model.params) / 0.1 == pytest.approx(metrics["fednova_norm"], rel=1e-6)
    if not work.nesterov:
        closed = sum((1 - momentum**k) / (1 - momentum) for k in range(1, steps + 1))
        assert metrics["fednova_norm"] == pytest.approx(closed, rel=1e-12)
    if momentum == 0:
        assert metrics["fednova_norm"] == steps


def test_loss_falls(net_world: Make, a_job: Make) -> None:
    world = net_world()
    model, work = world.model(), Sgd(lr=0.1, batch=24)
    losses = [work.run(model, world.shard(0, turn), a_job(10), {})["loss"] for turn in range(4)]
    assert all(later < earlier for earlier, later in pairwise(losses))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("batch", 0),
        ("momentum", 1.0),
        ("nesterov", True),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("lr_decay", 0.0),
        ("lr_decay", 1.1),
    ],
)
def test_values_out_of_range_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Sgd(**{field: value})


def test_a_job_without_steps_is_refused(net_world: Make, a_job: Make) -> None:
    world = net_world()
    with pytest.raises(ValueError, match="0 steps"):
        Sgd().run(world.model(), world.shard(0, 0), a_job(0), {})
