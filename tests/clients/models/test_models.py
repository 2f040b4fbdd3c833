"""Networks: published parameter counts, logits of the right shape, reproducible initial weights, counted FLOPs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clients.models.build import build
from clients.models.flops import forward_flops
from clients.models.resnet import resnet8, resnet18
from clients.models.text import char_transformer
from clients.models.vision import cnn_cifar, cnn_mcmahan, cnn_mnist, lenet, mlp, softmax

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
COUNTS = [
    (softmax, MNIST, 7_850), (mlp, MNIST, 199_210), (partial(mlp, hidden=(128, 64)), (1, 8, 8), 17_226),
    (cnn_mcmahan, MNIST, 1_663_370), (cnn_mnist, MNIST, 582_026), (lenet, MNIST, 21_840), (cnn_cifar, CIFAR, 122_570),
]  # fmt: skip
IMAGES = [
    *((f, s) for f, s, _ in COUNTS), (cnn_mcmahan, (1, 8, 8)), (cnn_mnist, CIFAR), (resnet8, CIFAR),
    (resnet8, (1, 8, 8)), (partial(resnet18, width=8), CIFAR), (cnn_cifar, (3, 18, 25)), (lenet, (1, 16, 20)),
]  # fmt: skip


def name(value: Any) -> str:
    inner = getattr(value, "func", value)
    return getattr(inner, "__name__", str(value))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("factory", "shape", "count"), COUNTS, ids=name)
def test_parameters_are_those_published(factory, shape, count):
    assert size(factory(input_shape=shape, classes=10)) == count


def test_residual_networks_have_the_parameters_of_their_layers():
    """Stem, blocks (with a 1x1 shortcut where the width changes), head; two numbers a channel for each norm."""

    def expected(channels: int, stages: list[tuple[int, int]], classes: int) -> int:
        width = stages[0][0]
        total = 9 * channels * width + 2 * width
        for after, blocks in stages:
            for _ in range(blocks):
                total += 9 * width * after + 9 * after * after + 4 * after
                total += (width * after + 2 * after) if width != after else 0
                width = after
        return total + width * classes + classes

    assert size(resnet8(input_shape=CIFAR, classes=10)) == expected(3, [(16, 1), (32, 1), (64, 1)], 10)
    whole = expected(3, [(64, 2), (128, 2), (256, 2), (512, 2)], 10)
    assert size(resnet18(input_shape=CIFAR, classes=10)) == whole == 11_173_962


@pytest.mark.parametrize(("factory", "shape"), IMAGES, ids=name)
def test_images_become_logits_and_every_parameter_learns(factory, shape):
    model = build(factory, shape, 7, 0)
    x, y = torch.randn(4, *shape), torch.arange(4)
    assert model.predict(x).shape == (4, 7)
    model.gradient(x, y)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.module.parameters())


def test_no_network_has_statistics_of_its_batches():
    for factory, shape in IMAGES:
        module = factory(input_shape=shape, classes=3)
        assert not list(module.buffers())
        x = torch.randn(3, *shape)
        assert torch.allclose(module(x)[:1], module(x[:1]), atol=1e-5)


def test_sequences_become_logits_for_every_position():
    model = build(char_transformer, (9,), 11, 0)
    x = torch.randint(0, 11, (3, 9))
    assert model.predict(x).shape == (3, 9, 11)
    model.gradient(x, x.roll(-1, 1))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.module.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_character_is_predicted_from_those_before_it_alone(training):
    module = char_transformer(input_shape=(8,), classes=5).train(training)
    x = torch.randint(0, 5, (1, 8))
    y = x.clone()
    y[0, 5] = (y[0, 5] + 1) % 5
    with torch.no_grad():
        before, after = module(x), module(y)
    assert torch.allclose(before[0, :5], after[0, :5], atol=1e-6)
    assert not torch.allclose(before[0, 5:], after[0, 5:], atol=1e-3)


def test_shorter_sequences_are_taken():
    module = char_transformer(input_shape=(8,), classes=5).eval()
    x = torch.randint(0, 5, (2, 8))
    assert torch.allclose(module(x)[:, :3], module(x[:, :3]), atol=1e-5)


def test_the_seed_decides_the_start_and_the_callers_stream_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build(mlp, MNIST, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.flat, same.flat) and not torch.equal(one.flat, other.flat)
    torch.manual_seed(99)
    assert torch.equal(build(mlp, MNIST, 10, 0).flat, one.flat)


def test_a_factory_that_makes_no_module_is_named():
    with pytest.raises(ValueError, match=r"returned dict, not an nn\.Module"):
        build(lambda **_: {}, MNIST, 10, 0)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cnn_mnist(input_shape=(1, 8, 8), classes=2), "8 x 8 are too small for two 5x5 .*at least 16 x 16"),
        (lambda: cnn_mcmahan(input_shape=(1, 3, 9), classes=2), "3 x 9 are too small .*at least 4 x 4"),
        (lambda: cnn_cifar(input_shape=(1, 17, 30), classes=2), "17 x 30 are too small .*at least 18 x 18"),
        (lambda: lenet(input_shape=(80,), classes=2), r"takes images .*have \(80,\)"),
        (lambda: resnet8(input_shape=(80,), classes=2), r"takes images .*have \(80,\)"),
        (lambda: resnet8(input_shape=CIFAR, classes=2, width=9), "width=9 must be a positive multiple of groups=2"),
        (lambda: mlp(input_shape=MNIST, classes=2, hidden=(5, 0)), r"hidden=\[5, 0\]"),
        (lambda: char_transformer(input_shape=MNIST, classes=2), r"takes sequences .*have \(1, 28, 28\)"),
        (lambda: char_transformer(input_shape=(8,), classes=2, width=30), "width=30 must be a positive multiple"),
        (lambda: char_transformer(input_shape=(8,), classes=2, depth=0), "depth=0"),
    ],
)
def test_what_does_not_fit_says_what_would(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_smallest_images_that_are_said_to_fit_do():
    for factory, side in ((cnn_mnist, 16), (cnn_mcmahan, 4), (cnn_cifar, 18)):
        assert factory(input_shape=(1, side, side), classes=2)(torch.zeros(1, 1, side, side)).shape == (1, 2)


@pytest.mark.parametrize(("factory", "shape"), IMAGES, ids=name)
def test_operations_of_images_are_those_torch_counts(factory, shape):
    module = factory(input_shape=shape, classes=10)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape))
    assert forward_flops(module, shape) == counter.get_total_flops() > 0


def test_operations_of_two_layers_by_hand():
    module = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4 * 3 * 3, 5))
    assert forward_flops(module, (2, 5, 5)) == 2 * (9 * 4 * 9) + 2 * (36 * 5)
    up = nn.ConvTranspose2d(2, 3, 2, stride=2)
    assert forward_flops(up, (2, 4, 4)) == 2 * (2 * 16 * 3 * 4)


def test_operations_of_attention_by_hand():
    length, width, classes, depth = 10, 8, 7, 3
    module = char_transformer(input_shape=(length,), classes=classes, width=width, heads=2, depth=depth)
    attention = 4 * length * width**2 + 2 * length**2 * width
    perceptron = 8 * length * width**2
    assert forward_flops(module, (length,)) == 2 * (depth * (attention + perceptron) + length * width * classes)


def test_counting_leaves_the_module_as_it_was():
    module = lenet(input_shape=MNIST, classes=10)
    forward_flops(module, MNIST)
    assert module.training and not any(m._forward_hooks for m in module.modules())
    module.eval()
    with pytest.raises(RuntimeError):
        forward_flops(module, (1, 12, 28))
    assert not module.training and not any(m._forward_hooks for m in module.modules())
