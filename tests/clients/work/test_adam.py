"""Local Adam equals torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clients.work.adam import Adam
from fedhet.testing.quadratic import QuadraticWorld

Make = Callable[..., Any]


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_steps_equal_those_of_torch(decay: float, net_world: Make, a_job: Make) -> None:
    world = net_world()
    model, net = world.model(), world.module()
    metrics = Adam(lr=0.01, batch=10, weight_decay=decay).run(model, world.shard(1, 0), a_job(12), {})
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=decay)
    batches, losses = world.shard(1, 0).batches(10), []
    for _ in range(12):
        x, y = next(batches)
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(model.params, expected, rtol=0, atol=1e-10)
    assert metrics == pytest.approx({"loss": sum(losses) / 12, "steps": 12})


def test_first_step_has_the_length_of_the_rate(a_job: Make) -> None:
    world = QuadraticWorld([2.0], [[1.0, -3.0]])
    model = world.model()
    Adam(lr=0.1, lr_decay=0.5).run(model, world.shard(0, 0), a_job(1, version=1), {})
    assert model.params.tolist() == pytest.approx([0.05, -0.05], rel=1e-7)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("eps", 0.0), ("batch", 0), ("beta1", 1.0), ("beta2", -0.1), ("weight_decay", -1.0), ("lr_decay", 0)],
)
def test_values_out_of_range_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Adam(**{field: value})


def test_a_job_without_steps_is_refused(net_world: Make, a_job: Make) -> None:
    world = net_world()
    with pytest.raises(ValueError, match="0 steps"):
        Adam().run(world.model(), world.shard(0, 0), a_job(0), {})
