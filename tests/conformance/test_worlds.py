"""Models, data and transports under conf/ that need no files and no processes pass the checks of their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedhet.testing.conformance import check_data, check_model, check_transport

PICTURE, COLOUR, TEXT = (1, 28, 28), (3, 32, 32), (12,)
SHAPES = {
    "mlp": PICTURE, "mlp_small": PICTURE, "softmax": PICTURE, "cnn_mnist": PICTURE, "cnn_mcmahan": PICTURE,
    "lenet": PICTURE, "cnn_cifar": COLOUR, "resnet8": COLOUR, "char_decoder": TEXT, "char_transformer": TEXT,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_model(name: str, build: Callable[[str], Any]) -> None:
    shape = SHAPES[name]
    letters = 80 if shape == TEXT else None
    check_model(build(f"model/{name}"), input_shape=shape, classes=letters or 10, vocabulary=letters)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_data(name: str, build: Callable[[str], Any]) -> None:
    check_data(build(f"data/{name}"))


def test_transport(build: Callable[[str], Any]) -> None:
    check_transport(build("transport/virtual"))
