"""What every space promises: what is sent, trained, brought back, combined and merged is what ends in the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.protocols import Space, Work
from fedhet.types import Budget, Job, Tree

AXES = ("space",)
COUNT = 4
PROBES = torch.from_numpy(np.random.default_rng(9).normal(size=(20, 6)))
"""Inputs on which two models are compared: more of them than any layer has inputs."""

CUT = {"florist": "what little a combination's smallest singular values hold is cut"}
NOT_LINEAR = {**CUT, "padded_lora": "products of averages are no averages of products"}
OWN_DISTANCES = {**CUT, **dict.fromkeys(("padded_lora", "ffa", "rolora"), "distances are those of factors")}


def skip(option: str, exceptions: dict[str, str]) -> None:
    name = option.partition("/")[2]
    if name in exceptions:
        pytest.skip(f"{name}: {exceptions[name]}")


def fresh_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double())


@dataclass(frozen=True)
class Samples:
    """A client's ten random samples."""

    seed: int

    def __len__(self) -> int:
        return 10

    def all_samples(self) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(self.seed)
        return torch.from_numpy(rng.normal(size=(10, 6))), torch.from_numpy(rng.integers(0, 3, 10))

    def batches(self, size: int) -> Any:
        while True:
            yield self.all_samples()

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(self.seed)


@dataclass
class Federation:
    """A space, a work that fills it, and the server's state; `dense` reads any state as the whole model's numbers."""

    space: Space
    work: Work

    def __post_init__(self) -> None:
        self.state = self.space.begin(fresh_model())

    def dense(self, state: Tree) -> np.ndarray:
        model = fresh_model(1)
        self.space.restore(model, state)
        return model.flat.numpy().copy()

    def outputs(self, state: Tree) -> np.ndarray:
        """What the whole model of a state says to the probes."""
        model = fresh_model(1)
        self.space.restore(model, state)
        return model.predict(PROBES).numpy()

    def moved(self, delta: Tree) -> np.ndarray:
        """What merging a delta does to the model."""
        return self.dense(self.space.merge(self.state, delta)) - self.dense(self.state)

    def trained(self, client: int) -> tuple[Model, Tree]:
        """A device after its job, and the delta it brings."""
        job = Job(client, client, 0, 0, Budget(steps=3), 0.0)
        device, payload = fresh_model(2 + client), self.space.offer(self.state, job)
        self.space.install(device, payload, job)
        self.work.run(device, Samples(client), job, {})
        delta = self.space.extract(device, payload)
        assert Schema.of(delta) == self.space.expects(self.state, job)
        return device, self.space.decode_delta(self.state, job, delta)

    def deltas(self) -> list[Tree]:
        return [self.trained(client)[1] for client in range(COUNT)]


@pytest.fixture
def federation(option: str, build: Callable[[str], Any], build_all: Callable[[str], list[Any]]) -> Federation:
    space = build(option)
    works = [work for work in build_all("work") if work.needs <= space.gives]
    return Federation(space, max(works, key=lambda work: len(work.needs - {"coordinates"})))


def test_beginning_and_restoring_is_the_model_itself(option: str, federation: Federation) -> None:
    assert np.array_equal(federation.dense(federation.state), fresh_model().flat.numpy())


def test_merging_what_one_device_extracted_gives_that_devices_model(option: str, federation: Federation) -> None:
    skip(option, CUT)
    before = wire_format.encode(federation.state)
    device, delta = federation.trained(0)
    merged = federation.space.merge(federation.state, delta)
    assert np.abs(federation.moved(delta)).max() > 1e-3, "training is meant to do something"
    np.testing.assert_allclose(federation.outputs(merged), device.predict(PROBES).numpy(), rtol=1e-12, atol=1e-14)
    assert wire_format.encode(federation.state) == before
    device.flat.zero_()
    assert np.abs(federation.moved(delta)).max() > 1e-3, "the delta is a view of the device's model"


def test_combining_is_linear(option: str, federation: Federation) -> None:
    skip(option, NOT_LINEAR)
    deltas, c = federation.deltas(), [0.7, -0.4, 0.2, 1.1]
    expected = sum(x * federation.moved(d) for x, d in zip(c, deltas, strict=True))
    np.testing.assert_allclose(federation.moved(federation.space.combine(deltas, c)), expected, atol=1e-13)
    alone = federation.space.combine(deltas[:1], [1.0])
    np.testing.assert_allclose(federation.moved(alone), federation.moved(deltas[0]), atol=1e-15)


def test_inner_products_are_those_of_the_dense_models_symmetric_and_never_negative(
    option: str, federation: Federation
) -> None:
    skip(option, OWN_DISTANCES)
    deltas = federation.deltas()
    gram, rows = federation.space.gram(deltas), np.stack([federation.moved(d) for d in deltas])
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, rows @ rows.T, rtol=1e-9, atol=1e-13)
    assert np.array_equal(gram, gram.T)
    assert np.linalg.eigvalsh(gram).min() > -1e-12 * gram.max()


def test_a_delta_that_crossed_the_wire_combines_to_the_same_bits(option: str, federation: Federation) -> None:
    deltas, c = federation.deltas(), [0.25] * COUNT
    crossed = [wire_format.open_tree(bytearray(wire_format.encode(d))) for d in deltas]
    combine = federation.space.combine
    assert wire_format.encode(combine(crossed, c)) == wire_format.encode(combine(deltas, c))
