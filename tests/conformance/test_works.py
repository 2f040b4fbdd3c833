"""What every work promises: honest metrics, training in place, equal bits for equal jobs, a memory to be stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from clients.data.shard import ClientShard
from clients.models.build import build as build_model
from clients.models.vision import mlp
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.protocols import Space, Work
from fedhet.types import Budget, Job, Memory, Tree

AXES = ("work",)
CLASSES, SAMPLES = 3, 20


@dataclass
class Device:
    """A device's whole life: `turn(memory)` is its next job, from a model the server has moved on since."""

    work: Work
    space: Space

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.normal(size=(SAMPLES, 1, 3, 3))).float()
        self.y = torch.from_numpy(rng.integers(0, CLASSES, SAMPLES))
        self.state = self.space.begin(self.fresh())
        self.turns = 0

    def fresh(self) -> Model:
        return build_model(lambda **given: mlp(hidden=[8], **given), (1, 3, 3), CLASSES, 0)

    def turn(self, memory: Memory, steps: int = 6) -> tuple[Model, Tree, dict[str, float]]:
        job = Job(self.turns, 0, self.turns, self.turns, Budget(steps=steps), 0.0)
        payload, model = self.space.offer(self.state, job), self.fresh()
        self.space.install(model, payload, job)
        shard = ClientShard(self.x, self.y, np.arange(SAMPLES), 0, 0, self.turns)
        metrics = dict(self.work.run(model, shard, job, memory))
        delta = self.space.extract(model, payload)
        self.state = self.space.merge(self.state, self.space.combine([delta], [0.5]))
        self.turns += 1
        return model, delta, metrics


@pytest.fixture
def device(option: str, build: Callable[[str], Any], build_all: Callable[[str], list[Any]]) -> Callable[[], Device]:
    """device() is a new one; its space is the plainest that gives what the work needs."""
    work = build(option)
    spaces = [space for space in build_all("space") if work.needs <= space.gives]
    return lambda: Device(work, min(spaces, key=lambda space: (type(space).__name__ != "Full", len(space.gives))))


def test_metrics_are_finite_numbers_with_a_loss_that_falls(option: str, device: Callable[[], Device]) -> None:
    life, memory = device(), {}
    first, *_, last = (life.turn(memory)[2] for _ in range(30))
    for metrics in (first, last):
        assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())
    assert 0 < last["loss"] < first["loss"]


def test_training_changes_the_given_model_in_place(option: str, device: Callable[[], Device]) -> None:
    model, _, _ = device().turn({})
    start = device().fresh()
    assert not torch.equal(model.flat, start.flat)
    parameters = torch.cat([p.detach().reshape(-1) for p in model.module.parameters()])
    assert torch.equal(parameters, model.params), "the module and the flat buffer are one storage"
    assert next(model.module.parameters()).data_ptr() == model.flat.data_ptr()


def test_the_same_job_gives_the_same_bits(option: str, device: Callable[[], Device]) -> None:
    (_, first, one), (_, second, two) = (device().turn({}) for _ in range(2))
    assert wire_format.encode(first) == wire_format.encode(second) and one == two


def test_more_steps_go_further(option: str, device: Callable[[], Device]) -> None:
    assert wire_format.encode(device().turn({}, steps=1)[1]) != wire_format.encode(device().turn({}, steps=2)[1])


def test_a_memory_that_was_stored_between_jobs_gives_the_same_bits(option: str, device: Callable[[], Device]) -> None:
    whole, broken = device(), device()
    kept: Memory = {}
    stored: Memory = {}
    for _ in range(4):
        _, expected, _ = whole.turn(kept)
        _, delta, _ = broken.turn(stored)
        assert wire_format.encode(delta) == wire_format.encode(expected)
        stored = dict(wire_format.open_tree(bytearray(wire_format.encode(stored)))) if stored else {}


def test_what_is_remembered_is_not_a_view_of_the_model(option: str, device: Callable[[], Device]) -> None:
    memory: Memory = {}
    model, _, _ = device().turn(memory)
    before = {name: leaf.clone() for name, leaf in memory.items()}
    model.flat.zero_()
    model.grad.fill_(7.0)
    assert all(torch.equal(memory[name], leaf) for name, leaf in before.items())
