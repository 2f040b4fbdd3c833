"""Image classifiers: softmax regression, perceptrons and small convolutional networks, none with batch statistics.

Each takes images (n, *input_shape) and gives logits (n, classes). Parameter counts are those of the papers named:
McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629; Li et
al., "FedCompass", arXiv:2309.14675; Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", arXiv:2206.10189.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def softmax(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Softmax regression: one linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))


def mlp(*, input_shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (200, 200)) -> nn.Module:
    """A multilayer perceptron with ReLU and the hidden layers `hidden`.

    With (200, 200) on 784 inputs it is McMahan's 2NN with 199,210 parameters (arXiv:1602.05629). Without hidden layers
    it is softmax regression. Raises ValueError for a layer of no units.
    """
    if any(units < 1 for units in hidden):
        raise ValueError(f"hidden={list(hidden)}: every layer needs at least 1 unit")
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn_mcmahan(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """McMahan's CNN: two padded 5x5 convolutions (32, 64), 512 units; 1,663,370 parameters on 28 x 28.

    arXiv:1602.05629.
    """
    return _two_convolutions(input_shape, classes, (32, 64), 512, padding=2)


def cnn_mnist(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """FedCompass's MNIST model: McMahan's CNN without padding; 582,026 parameters on 28 x 28.

    arXiv:2309.14675.
    """
    return _two_convolutions(input_shape, classes, (32, 64), 512, padding=0)


def lenet(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """LeNet: 5x5 convolutions of 10 and 20 channels, 50 units; 21,840 parameters on 28 x 28."""
    return _two_convolutions(input_shape, classes, (10, 20), 50, padding=0)


def cnn_cifar(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """FedFix's CIFAR-10 model: three 3x3 convolutions (32, 64, 64), 64 units; 122,570 parameters.

    arXiv:2206.10189; the number is that on 3 x 32 x 32.
    """
    channels, height, width = image(input_shape)
    if min(_after(height), _after(width)) < 1:
        raise ValueError(f"images of {height} x {width} are too small for three 3x3 convolutions: at least 18 x 18")
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * _after(height) * _after(width), 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def image(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width. Raises ValueError for inputs that are no images."""
    if len(input_shape) != 3:
        raise ValueError(f"this model takes images (channels, height, width), the data have {tuple(input_shape)}")
    return input_shape[0], input_shape[1], input_shape[2]


def _after(size: int) -> int:
    return ((size - 2) // 2 - 2) // 2 - 2


def _two_convolutions(
    input_shape: tuple[int, ...], classes: int, channels: tuple[int, int], units: int, padding: int
) -> nn.Module:
    first, height, width = image(input_shape)
    for _ in range(2):
        height, width = (height + 2 * padding - 4) // 2, (width + 2 * padding - 4) // 2
    if height < 1 or width < 1:
        raise ValueError(
            f"images of {input_shape[1]} x {input_shape[2]} are too small for two 5x5 convolutions: at least "
            + ("4 x 4" if padding else "16 x 16")
        )
    return nn.Sequential(
        nn.Conv2d(first, channels[0], 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels[0], channels[1], 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(channels[1] * height * width, units), nn.ReLU(), nn.Linear(units, classes),
    )  # fmt: skip
