"""An explicit gradient equals autograd's, bit for bit; other modules are left to autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.models.vision import cnn_cifar, mlp, softmax
from fedhet.model.flat_model import Model, cross_entropy
from fedhet.native.mlp_gradient import Perceptron


def by_autograd(model: Model, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.grad.zero_()
    loss = cross_entropy(model.module(x), y)
    loss.backward()
    return loss.detach(), model.grad.clone()


@pytest.mark.parametrize("hidden", [(), (100,), (200, 200), (64, 3, 17)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 28, 28)])
@pytest.mark.parametrize("size", [1, 3, 10, 32])
def test_gradient_by_hand_is_autograds_bit_for_bit(
    hidden: tuple[int, ...], shape: tuple[int, int, int], size: int
) -> None:
    torch.manual_seed(size)
    model = Model(mlp(input_shape=shape, classes=10, hidden=hidden))
    hand = Perceptron.of(model.module)
    assert hand is not None
    x, y = torch.randn(size, *shape), torch.randint(0, 10, (size,))
    loss, gradient = by_autograd(model, x, y)
    model.grad.fill_(7.0)
    assert torch.equal(hand.gradient(x, y), loss)
    assert torch.equal(model.grad, gradient)


def test_gradient_by_hand_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    model = Model(mlp(input_shape=(1, 3, 3), classes=4, hidden=(5,)).double())
    x, y = torch.randn(6, 1, 3, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    model.gradient(x, y)
    gradient = model.grad.clone()
    for at in range(0, len(model.params), 3):
        ends = []
        for step in (1e-6, -2e-6):
            model.params[at] += step
            ends.append(cross_entropy(model.module(x), y).item())
        model.params[at] += 1e-6
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(gradient[at]), rel=1e-6, abs=1e-9)


def test_a_model_takes_the_short_way_and_sees_its_parameters_move() -> None:
    model = Model(softmax(input_shape=(1, 4, 4), classes=3))
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    before = model.gradient(x, y)
    model.params.add_(model.grad, alpha=-0.5)
    after = model.gradient(x, y)
    assert after < before
    assert torch.equal(after, by_autograd(model, x, y)[0])


@pytest.mark.parametrize("hidden", [(), (20, 7)])
def test_a_step_inside_the_products_is_gradient_and_step_to_rounding(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    model = Model(mlp(input_shape=(1, 4, 4), classes=3, hidden=hidden).double())
    x, y = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    start = model.flat.clone()
    loss = model.gradient(x, y).clone()
    expected = start - 0.3 * model.grad
    assert torch.equal(model.descend(x, y, 0.3), loss)
    torch.testing.assert_close(model.flat, expected, rtol=1e-14, atol=1e-15)
    by_class = model.flat.clone()
    model.flat.copy_(start)
    hand = Perceptron.of(model.module)
    assert hand is not None
    assert hand.descend(x, nn.functional.one_hot(y, 3).double(), 0.3) == pytest.approx(float(loss), rel=1e-14)
    assert torch.equal(model.flat, by_class)


def test_a_step_of_any_other_model_has_the_bits_of_gradient_and_step() -> None:
    torch.manual_seed(4)
    model = Model(cnn_cifar(input_shape=(3, 32, 32), classes=10))
    x, y = torch.randn(6, 3, 32, 32), torch.randint(0, 10, (6,))
    start = model.flat.clone()
    model.gradient(x, y)
    expected = start.add(model.grad, alpha=-0.1)
    model.descend(x, y, 0.1)
    assert torch.equal(model.flat, expected) and not torch.equal(expected, start)


def test_a_step_moves_nothing_but_what_is_trained() -> None:
    """A space may show the work the last layer alone; it says so by `params` and `requires_grad`."""
    model = Model(mlp(input_shape=(1, 4, 4), classes=3, hidden=(5,)))
    start, last = model.flat.clone(), 5 * 3 + 3
    for parameter in list(model.module.parameters())[:2]:
        parameter.requires_grad_(False)
    model.params, model.grad = model.flat[-last:], model.grad[-last:]
    model.descend(torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6,)), 0.1)
    assert torch.equal(model.flat[:-last], start[:-last]) and not torch.equal(model.flat[-last:], start[-last:])


def hooked() -> nn.Module:
    module = softmax(input_shape=(1, 4, 4), classes=3)
    module.register_forward_hook(lambda m, i, o: o * 2)
    return module


def halved() -> nn.Module:
    module = mlp(input_shape=(1, 4, 4), classes=3, hidden=(5,))
    next(module.parameters()).requires_grad_(False)
    return module


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        hooked(),
        halved(),
        cnn_cifar(input_shape=(3, 32, 32), classes=10),
        nn.Sequential(nn.Flatten(), Doubled(16, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)),
        nn.Sequential(nn.Linear(16, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 3)),
    ],
)
def test_what_is_no_plain_perceptron_is_left_to_autograd(module: nn.Module) -> None:
    assert Perceptron.of(Model(module).module) is None


def test_another_loss_or_kind_of_input_is_left_to_autograd() -> None:
    module = softmax(input_shape=(1, 4, 4), classes=3)
    squared = Model(module, lambda output, target: ((output - target) ** 2).mean())
    x = torch.randn(5, 1, 4, 4)
    loss = squared.gradient(x, torch.ones(5, 3))
    assert torch.equal(loss, ((module(x) - 1) ** 2).mean())
    plain = Model(softmax(input_shape=(1, 4, 4), classes=3))
    x.requires_grad_(True)
    plain.gradient(x, torch.tensor([0, 1, 2, 0, 1]))
    assert x.grad is not None
