"""Adagrad, Adam and Yogi at the server against a float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.numerics.tree import FlatTree, Schema
from fedhet.types import Memory
from strategies.optimizers.fedopt import Adagrad, Adam, Yogi

Make = Callable[..., Any]


def reference(kind: str, deltas: list[np.ndarray], lr: float, b1: float, b2: float, tau: float) -> list[np.ndarray]:
    m, v, steps = np.zeros_like(deltas[0]), np.full_like(deltas[0], tau**2), []
    for d in deltas:
        m = b1 * m + (1 - b1) * d
        v = {
            "adagrad": v + d**2,
            "adam": b2 * v + (1 - b2) * d**2,
            "yogi": v - (1 - b2) * d**2 * np.sign(v - d**2),
        }[kind]
        steps.append(lr * m / (np.sqrt(v) + tau))
    return steps


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("adagrad", Adagrad(lr=0.3, b1=0.5, tau=0.01)),
        ("adam", Adam(lr=0.3, b1=0.5, tau=0.01, b2=0.9)),
        ("yogi", Yogi(lr=0.3, b1=0.5, tau=0.01, b2=0.9)),
    ],
)
def test_the_steps_are_those_of_the_algorithm(kind: str, layer: Any, plain: bool, fake_view: Make) -> None:
    rng = np.random.default_rng(3)
    deltas = [rng.normal(size=6) * 10.0 ** rng.integers(-3, 2) for _ in range(12)]
    memory: Memory = {}
    for d, want in zip(deltas, reference(kind, deltas, 0.3, 0.5, 0.9, 0.01), strict=True):
        leaf = torch.tensor(d, dtype=torch.float32)
        tree: Any = {"w": leaf} if plain else FlatTree(Schema.of({"w": leaf}), leaf)
        np.testing.assert_allclose(layer.finish(tree, fake_view(), memory)["w"].numpy(), want, rtol=2e-4, atol=1e-6)


def test_yogi_lets_the_second_moment_fall_more_slowly_than_adam(fake_view: Make) -> None:
    memories: dict[str, Memory] = {"adam": {}, "yogi": {}}
    for value in [10.0] + [0.001] * 30:
        for name, layer in (("adam", Adam()), ("yogi", Yogi())):
            layer.finish({"w": torch.tensor([value])}, fake_view(), memories[name])
    assert float(memories["yogi"]["v/w"]) > 1.2 * float(memories["adam"]["v/w"])


@pytest.mark.parametrize("field", ["lr=-1", "b1=1", "b2=-0.1", "tau=0"])
def test_values_out_of_range_are_named(field: str) -> None:
    name, value = field.split("=")
    for cls in (Adam, Yogi):
        with pytest.raises(ValueError, match=field):
            cls(**{name: float(value) if "." in value else int(value)})
